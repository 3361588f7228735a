/** Carries out the steps of a history on the real verbs, and reads back what the model says. */
import { randomUUID } from "node:crypto";
import type { Pool } from "pg";
import { Replayed } from "../../src/db/command.ts";
import { DomainError } from "../../src/error.ts";
import { type Action, COUPON, type Model, type OrderModel, PRICES, type Step } from "./model.ts";
import { callOf, expireAll, newShop, type Replica } from "./verbs.ts";

/** The part of the model that is stored, with the answers left out. */
export type Stored = Omit<Model, "answered">;

const DAY = 86_400_000;

/** Two users, two variants and a coupon of their own on a database that others may use too. */
export class World {
  readonly #replicas: readonly Replica[];
  readonly #database: Pool;
  readonly #prefix = randomUUID().slice(0, 8);
  users: string[] = [];
  variants: string[] = [];
  #coupon = "";
  /** By the key of the step that made them. */
  readonly #orders = new Map<number, string>();
  readonly #pieces = new Map<number, string>();
  readonly #payments = new Map<number, string>();
  /** What was answered to a step, each time: always the same. */
  readonly answers = new Map<number, Set<string>>();

  private constructor(replicas: readonly Replica[], database: Pool) {
    this.#replicas = replicas;
    this.#database = database;
  }

  static async create(replicas: readonly Replica[], database: Pool, stocks: readonly number[]): Promise<World> {
    const world = new World(replicas, database);
    const replica = world.#replica(0);
    const variants = stocks.map((stock, index) => ({ price: BigInt(PRICES[index] ?? 0), stock }));
    const { userId, variantIds } = await newShop(replica, 0n, variants);
    const { id } = await replica.users.create(callOf(), "Another buyer");
    const coupon = await replica.coupons.create(callOf(), {
      name: "A coupon",
      discountAmount: BigInt(COUPON.amount),
      discountPercent: null,
      maxDiscount: null,
      minOrderAmount: BigInt(COUPON.least),
      totalQuantity: COUPON.total,
      perUserLimit: COUPON.perUser,
      validFrom: undefined,
      validUntil: new Date(replica.db.now().getTime() + 30 * DAY),
    });
    world.users = [userId, id];
    world.variants = variantIds;
    world.#coupon = coupon.id;
    return world;
  }

  /** The orders whose payment is known. */
  get paid(): ReadonlySet<number> {
    return new Set(this.#payments.keys());
  }

  #replica(index: number): Replica {
    return this.#replicas[index % this.#replicas.length] as Replica;
  }

  /** Carries a step out on a replica. Returns OK, REPLAY or the reason why not; throws what no caller may see. */
  async run({ key, action }: Step, replica: number): Promise<string> {
    const { kind, ...content } = action;
    const call = callOf(content, `${this.#prefix}-${key}`, kind);
    try {
      await this.#carryOut(this.#replica(replica), call, key, action);
      this.#answered(key, call.answer);
      return "OK";
    } catch (error) {
      if (error instanceof DomainError) return error.reason;
      if (!(error instanceof Replayed)) throw error;
      this.#answered(key, error.response);
      return "REPLAY";
    }
  }

  #answered(key: number, answer: Uint8Array | undefined): void {
    if (answer) this.answers.set(key, (this.answers.get(key) ?? new Set()).add(Buffer.from(answer).toString()));
  }

  async #carryOut(replica: Replica, call: ReturnType<typeof callOf>, key: number, action: Action): Promise<void> {
    const { carts, orders, payments } = replica;
    const userId = "user" in action ? (this.users[action.user] ?? "") : "";
    const variantId = "variant" in action ? (this.variants[action.variant] ?? "") : "";
    const orderId = "order" in action ? (this.#orders.get(action.order) ?? randomUUID()) : "";
    switch (action.kind) {
      case "charge":
        await replica.balances.charge(call, { userId, amount: BigInt(action.amount), reference: "" });
        return;
      case "adjust":
        await replica.products.adjustStock(call, { variantId, delta: action.delta, reference: "" });
        return;
      case "add":
        await carts.addItem(call, { userId, variantId, quantity: action.quantity, rejectPresent: action.reject });
        return;
      case "update":
        await carts.updateItem(call, { userId, variantId, quantity: action.quantity });
        return;
      case "remove":
        return carts.removeItem(call, { userId, variantId });
      case "clear":
        return carts.clear(call, userId);
      case "claim":
        this.#pieces.set(key, (await replica.coupons.claim(call, { userId, couponId: this.#coupon })).id);
        return;
      case "pay":
        this.#payments.set(action.order, (await payments.pay(call, { userId, orderId, method: "BALANCE" })).id);
        return;
      case "cancel":
        await orders.cancel(call, { userId, orderId });
        return;
      case "refund":
        await payments.refund(call, { userId, paymentId: this.#payments.get(action.order) ?? randomUUID() });
        return;
      case "expire":
        await expireAll(replica);
        return;
      default:
        return this.#buy(replica, call, key, action);
    }
  }

  async #buy(
    { orders }: Replica,
    call: ReturnType<typeof callOf>,
    key: number,
    action: Extract<Action, { lines: unknown }>,
  ): Promise<void> {
    const { kind, user, lines, piece } = action;
    const purchase = {
      userId: this.users[user] ?? "",
      fromCart: lines === "cart",
      lines: lines === "cart" ? [] : lines.map(([v, quantity]) => ({ variantId: this.variants[v] ?? "", quantity })),
      issuedCouponId: piece === null ? undefined : (this.#pieces.get(piece) ?? randomUUID()),
      expectedTotal: undefined,
    };
    if (kind === "checkout") {
      const { order, payment } = await orders.checkout(call, purchase);
      this.#orders.set(key, order.id);
      this.#payments.set(key, payment.id);
      return;
    }
    const { order } = await orders.place(call, purchase, kind === "place" ? undefined : "BALANCE");
    this.#orders.set(key, order.id);
  }

  /** What is stored, in the words of the model. */
  async read(): Promise<Stored> {
    const { users, variants } = this;
    const query = (sql: string, ...values: unknown[]) => this.#database.query(sql, values).then(({ rows }) => rows);
    const wallets = await query("select user_id as id, balance from wallet where user_id = any($1)", users);
    const stocks = await query("select id, stock from variant where id = any($1)", variants);
    const [coupon] = await query("select issued from coupon where id = $1", this.#coupon);
    const pieces = await query("select * from issued_coupon where coupon_id = $1", this.#coupon);
    const items = await query("select * from cart_item where user_id = any($1) order by position", users);
    const orders = await query(
      `select o.*, json_agg(json_build_array(l.variant_id, l.quantity) order by l.line_no) as lines
         from shop_order o join order_line l on l.order_id = o.id where o.user_id = any($1) group by o.id`,
      users,
    );
    const orderKeys = keysOf(this.#orders);
    const pieceKeys = keysOf(this.#pieces);
    const toOrder = (row: (typeof orders)[number]): OrderModel => ({
      user: users.indexOf(row.user_id),
      state: row.state,
      lines: row.lines.map(([id, quantity]: [string, number]) => [variants.indexOf(id), quantity]),
      total: Number(row.total),
      piece: row.issued_coupon_id && Number(pieceKeys.get(row.issued_coupon_id)),
      expireTime: row.expire_time.getTime(),
    });
    return {
      balances: users.map((user) => Number(wallets.find(({ id }) => id === user)?.balance)),
      stocks: variants.map((variant) => stocks.find(({ id }) => id === variant)?.stock),
      issued: coupon.issued,
      pieces: Object.fromEntries(
        pieces.map((row) => [
          pieceKeys.get(row.id),
          { user: users.indexOf(row.user_id), order: row.order_id && orderKeys.get(row.order_id) },
        ]),
      ),
      carts: users.map((user) =>
        items.filter((row) => row.user_id === user).map((row) => [variants.indexOf(row.variant_id), row.quantity]),
      ),
      orders: Object.fromEntries(orders.map((row) => [orderKeys.get(row.id), toOrder(row)])),
    };
  }
}

function keysOf(ids: ReadonlyMap<number, string>): Map<string, number> {
  return new Map([...ids].map(([key, id]) => [id, key]));
}
