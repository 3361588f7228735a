import { share, type Touch, type Tx, touch, type Write } from "../db/command.ts";
import type { Database } from "../db/database.ts";
import { DomainError } from "../error.ts";
import { Variant } from "../product/product.entity.ts";
import { User } from "../user/user.entity.ts";
import { Cart, CartItem, inCartOrder } from "./cart.entity.ts";

export type ItemInput = Readonly<{ userId: string; variantId: string; quantity: number }>;

/** An item with what it costs now; `lineTotal` in minor units. */
export type PricedItem = Readonly<{ item: CartItem; variant: Variant; lineTotal: bigint; purchasable: boolean }>;

/** Carts. */
export class Carts {
  readonly #db: Database;

  constructor(db: Database) {
    this.#db = db;
  }

  /**
   * Puts units of a variant in, or raises the quantity of those that are there.
   *
   * @throws DomainError USER_NOT_FOUND, VARIANT_NOT_FOUND, INSUFFICIENT_STOCK, CART_FULL, ARGUMENT_INVALID for too many
   *   units, CART_ITEM_EXISTS when `rejectPresent` and it is there
   */
  addItem(call: Write, input: ItemInput & { rejectPresent: boolean }): Promise<CartItem> {
    const { userId, variantId, quantity, rejectPresent } = input;
    return this.#db.write(call, {
      touches: touchesOf(userId, variantId),
      decide: (tx) => {
        tx.get(User, { id: userId });
        const variant = tx.get(Variant, { id: variantId });
        const cart = tx.find(Cart, { userId }) ?? open(tx, userId);
        const items = tx.list(CartItem, { userId });
        const present = items.find((item) => item.variantId === variantId);
        if (!present) {
          const item = cart.add(variant, quantity, items.length);
          tx.add(item);
          return item;
        }
        if (rejectPresent) {
          throw new DomainError("CART_ITEM_EXISTS", "the item is in the cart already", { variant_id: variantId });
        }
        cart.setQuantity(present, variant, present.quantity + quantity);
        return present;
      },
    });
  }

  /** Sets the quantity. @throws DomainError CART_ITEM_NOT_FOUND, INSUFFICIENT_STOCK and as `addItem` */
  updateItem(call: Write, input: ItemInput): Promise<CartItem> {
    const { userId, variantId, quantity } = input;
    return this.#db.write(call, {
      touches: touchesOf(userId, variantId),
      decide: (tx) => {
        const { cart, item } = presentItem(tx, userId, variantId);
        cart.setQuantity(item, tx.get(Variant, { id: variantId }), quantity);
        return item;
      },
    });
  }

  /** @throws DomainError USER_NOT_FOUND, CART_ITEM_NOT_FOUND */
  removeItem(call: Write, input: { userId: string; variantId: string }): Promise<void> {
    const { userId, variantId } = input;
    return this.#db.write(call, {
      touches: touchesOf(userId, variantId),
      decide: (tx) => {
        const { cart, item } = presentItem(tx, userId, variantId);
        tx.remove(item);
        cart.removed();
      },
    });
  }

  /** Takes everything out; an empty cart stays as it is. @throws DomainError USER_NOT_FOUND */
  clear(call: Write, userId: string): Promise<void> {
    return this.#db.write(call, {
      touches: touchesOf(userId),
      decide: (tx) => {
        tx.get(User, { id: userId });
        const cart = tx.find(Cart, { userId });
        const items = [...tx.list(CartItem, { userId })];
        if (!cart || items.length === 0) return;
        for (const item of items) tx.remove(item);
        cart.removed();
      },
    });
  }

  /** What is in the cart at today's prices, in the order it was put in. @throws DomainError USER_NOT_FOUND */
  async get(userId: string): Promise<PricedItem[]> {
    const items = await this.#db.list(CartItem, { userId });
    if (items.length === 0 && !(await this.#db.find(User, { id: userId }))) throw User.notFound({ id: userId });
    return Promise.all(
      inCartOrder(items).map(async (item) => {
        const { variantId: id, quantity } = item;
        const variant = await this.#db.find(Variant, { id });
        if (!variant) throw Variant.notFound({ id });
        return { item, variant, lineTotal: variant.price * BigInt(quantity), purchasable: variant.stock >= quantity };
      }),
    );
  }
}

function touchesOf(userId: string, variantId?: string): Touch[] {
  const own = [touch(User, { id: userId }), touch(Cart, { userId }), touch(CartItem, { userId })];
  return variantId === undefined ? own : [...own, share(Variant, { id: variantId })];
}

function open(tx: Tx, userId: string): Cart {
  const cart = Cart.open(userId);
  tx.add(cart);
  return cart;
}

/** A cart that is not there is empty: items seen beside it are those of one that was opened a moment later. */
function presentItem(tx: Tx, userId: string, variantId: string): { cart: Cart; item: CartItem } {
  tx.get(User, { id: userId });
  const cart = tx.find(Cart, { userId });
  const item = tx.list(CartItem, { userId }).find((present) => present.variantId === variantId);
  if (!cart || !item) throw CartItem.notFound({ userId, variantId });
  return { cart, item };
}
