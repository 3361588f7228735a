import { randomUUIDv7 } from "node:crypto";
import { Wallet } from "../balance/balance.entity.ts";
import { Cart, CartItem, inCartOrder } from "../cart/cart.entity.ts";
import { IssuedCoupon } from "../coupon/coupon.entity.ts";
import { type Command, share, type Touch, type Tx, touch, type Write } from "../db/command.ts";
import type { Database } from "../db/database.ts";
import { byId, type Page, type PageRequest, pageOf } from "../db/page.ts";
import { DomainError } from "../error.ts";
import { Event } from "../outbox/event.entity.ts";
import type { Payment, PaymentMethod } from "../payment/payment.entity.ts";
import { assertServed, cancel, payFromWallet, touchesToGiveUp } from "../payment/settlement.ts";
import { Variant } from "../product/product.entity.ts";
import { User } from "../user/user.entity.ts";
import { Order, OrderLine, totalsOf } from "./order.entity.ts";
import { type Quote, quoteOf } from "./quote.ts";

export type WantedLine = Readonly<{ variantId: string; quantity: number }>;

/** What to buy: `lines`, or what is in the cart when `fromCart`. */
export type Purchase = Readonly<{
  userId: string;
  lines: readonly WantedLine[];
  fromCart: boolean;
  issuedCouponId: string | undefined;
  /** Minor units; undefined when the buyer was shown no total. */
  expectedTotal: bigint | undefined;
}>;

/** An order with its lines in their order. */
export type OrderWithLines = Readonly<{ order: Order; lines: readonly OrderLine[] }>;

/** Placing, paying at once, finding and cancelling orders. */
export class Orders {
  readonly #db: Database;
  readonly #ttl: number;
  readonly #gateway: string | undefined;

  /** `ttl`: how long an order waits for its payment, in milliseconds. `gateway`: the name of the one that serves EXTERNAL. */
  constructor(db: Database, ttl: number, gateway?: string) {
    this.#db = db;
    this.#ttl = ttl;
    this.#gateway = gateway;
  }

  /**
   * Takes the stock and the coupon and stores the order, which then waits for its payment.
   *
   * @throws DomainError USER_, VARIANT_, ISSUED_COUPON_NOT_FOUND, CART_EMPTY, INSUFFICIENT_STOCK, COUPON_NOT_USABLE,
   *   TOTAL_CHANGED, METHOD_NOT_SERVED, and INSUFFICIENT_BALANCE when `method` is BALANCE and the wallet can't cover the total
   */
  async place(call: Write, purchase: Purchase, method: PaymentMethod | undefined): Promise<OrderWithLines> {
    if (method !== undefined) assertServed(method, this.#gateway !== undefined);
    return this.#db.write(
      call,
      this.#purchase(purchase, (tx, placed) => {
        if (method === "BALANCE") tx.get(Wallet, { userId: purchase.userId }).assertCovers(placed.order.total);
        return placed;
      }),
    );
  }

  /** `place` and payment from the wallet in one transaction. @throws DomainError as `place`, INSUFFICIENT_BALANCE */
  checkout(call: Write, purchase: Purchase): Promise<OrderWithLines & { payment: Payment; wallet: Wallet }> {
    return this.#db.write(
      call,
      this.#purchase(purchase, (tx, { order, lines }) => {
        const payment = payFromWallet(tx, order, lines, "Checkout");
        return { order, lines, payment, wallet: tx.get(Wallet, { userId: order.userId }) };
      }),
    );
  }

  /**
   * Gives stock and coupon back, and the money when the order was paid.
   *
   * @throws DomainError ORDER_NOT_FOUND, ORDER_NOT_CANCELLABLE, METHOD_NOT_SERVED when another gateway has the money
   */
  cancel(call: Write, input: { userId: string; orderId: string }): Promise<OrderWithLines> {
    const { userId, orderId } = input;
    return this.#db.write(call, {
      touches: () => touchesToGiveUp(this.#db, orderId),
      decide: (tx) => {
        const order = tx.get(Order, { id: orderId });
        order.assertOwnedBy(userId);
        cancel(tx, order, { cause: "CancelOrder", gateway: this.#gateway });
        return { order, lines: inOrder(tx.list(OrderLine, { orderId })) };
      },
    });
  }

  /**
   * Totals at today's prices, and what would keep the order from being placed. Writes nothing.
   *
   * @throws DomainError USER_NOT_FOUND
   */
  async quote(purchase: Omit<Purchase, "expectedTotal">): Promise<Quote> {
    const { userId, issuedCouponId, fromCart } = purchase;
    if (!(await this.#db.find(User, { id: userId }))) throw User.notFound({ id: userId });
    const wanted = fromCart ? inCartOrder(await this.#db.list(CartItem, { userId })) : purchase.lines;
    const found = await Promise.all(wanted.map(({ variantId: id }) => this.#db.find(Variant, { id })));
    const variants = new Map(found.flatMap((variant) => (variant ? [[variant.id, variant]] : [])));
    const coupon = issuedCouponId && (await this.#db.find(IssuedCoupon, { userId, id: issuedCouponId }));
    return quoteOf(wanted, variants, coupon || issuedCouponId, this.#db.now());
  }

  /** @throws DomainError ORDER_NOT_FOUND, also for an order of somebody else */
  async get(userId: string, id: string): Promise<OrderWithLines> {
    const [order, lines] = await Promise.all([this.#db.find(Order, { id }), this.#db.list(OrderLine, { orderId: id })]);
    if (!order) throw Order.notFound({ id });
    order.assertOwnedBy(userId);
    return { order, lines: inOrder(lines) };
  }

  /** Newest first. @throws DomainError USER_NOT_FOUND, PAGE_TOKEN_INVALID */
  list(userId: string, request: PageRequest): Promise<Page<OrderWithLines>> {
    return this.#db.read(async (em) => {
      const page = await pageOf(
        "orders",
        request,
        byId,
        (order: Order) => order.id,
        (after, limit) =>
          em.find(Order, { userId, ...(after && { id: { $lt: after } }) }, { limit, orderBy: { id: "desc" } }),
      );
      if (page.items.length === 0 && !(await em.findOne(User, { id: userId }))) throw User.notFound({ id: userId });
      const ids = page.items.map(({ id }) => id);
      const linesOf = Map.groupBy(await em.find(OrderLine, { orderId: { $in: ids } }), (line) => line.orderId);
      return { ...page, items: page.items.map((order) => ({ order, lines: inOrder(linesOf.get(order.id) ?? []) })) };
    });
  }

  /** The command that places an order, and lets `then` go on in the same transaction. */
  #purchase<R>(purchase: Purchase, then: (tx: Tx, placed: OrderWithLines) => R): Command<R> {
    const { userId, fromCart, issuedCouponId } = purchase;
    const touches = (lines: readonly WantedLine[]): Touch[] => [
      touch(Wallet, { userId }),
      ...lines.map((line) => share(Variant, { id: line.variantId })),
      ...(issuedCouponId === undefined ? [] : [touch(IssuedCoupon, { userId, id: issuedCouponId })]),
    ];
    const planned = async () => {
      const items = await this.#db.list(CartItem, { userId });
      return [...touches(items), touch(Cart, { userId }), touch(CartItem, { userId })];
    };
    return {
      touches: fromCart ? planned : touches(purchase.lines),
      decide: (tx) => then(tx, placeOrder(tx, purchase, this.#ttl)),
    };
  }
}

function inOrder(lines: readonly OrderLine[]): OrderLine[] {
  return lines.toSorted((a, b) => a.lineNo - b.lineNo);
}

function placeOrder(tx: Tx, purchase: Purchase, ttl: number): OrderWithLines {
  const { userId, issuedCouponId, expectedTotal } = purchase;
  // There is a wallet for each user: one row answers whether the user exists, and what is in the wallet.
  tx.get(Wallet, { userId });
  const id = randomUUIDv7();
  const wanted = purchase.fromCart ? takeFromCart(tx, userId) : purchase.lines;
  const lines = wanted.map(({ variantId, quantity }) => {
    const variant = tx.get(Variant, { id: variantId });
    variant.take(quantity);
    return OrderLine.of(variant, quantity);
  });
  const coupon = issuedCouponId === undefined ? undefined : tx.get(IssuedCoupon, { userId, id: issuedCouponId });
  const totals = totalsOf(lines, coupon, tx.now);
  if (expectedTotal !== undefined && expectedTotal !== totals.total) {
    throw new DomainError("TOTAL_CHANGED", "the total is not the expected one", {
      expected: String(expectedTotal),
      total: String(totals.total),
    });
  }
  coupon?.useFor(id);
  const expireTime = new Date(tx.now.getTime() + ttl);
  const order = Order.place({ id, userId, totals, issuedCouponId: issuedCouponId ?? null, expireTime }, lines, tx.now);
  tx.add(order);
  for (const line of lines) tx.add(line);
  tx.add(Event.of("order.placed", id, order.describe(lines), tx.now));
  return { order, lines };
}

/** Empties the cart and returns what was in it. */
function takeFromCart(tx: Tx, userId: string): readonly WantedLine[] {
  // A cart that is not there is empty: items seen beside it are those of one that was opened a moment later.
  const cart = tx.find(Cart, { userId });
  const items = inCartOrder(tx.list(CartItem, { userId }));
  if (!cart || items.length === 0) {
    throw new DomainError("CART_EMPTY", "there is nothing in the cart", { user_id: userId });
  }
  for (const item of items) tx.remove(item);
  cart.removed();
  return items;
}
