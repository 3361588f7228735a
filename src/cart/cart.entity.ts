import { defineEntity, p } from "@mikro-orm/core";
import { DomainError } from "../error.ts";
import type { Variant } from "../product/product.entity.ts";

/** The most different variants in one cart: as many as an order takes. */
export const MAX_CART_ITEMS = 100;
/** The most units of one variant in one cart: as many as an order line takes. */
export const MAX_QUANTITY = 9999;

const cartSchema = defineEntity({
  name: "Cart",
  tableName: "cart",
  properties: {
    userId: p.uuid().primary(),
    /** Changes made so far; each change of an item is a change of the cart, so that two of them conflict. */
    changes: p.bigint(),
    version: p.integer().version(),
  },
});

const itemSchema = defineEntity({
  name: "CartItem",
  tableName: "cart_item",
  properties: {
    userId: () => p.manyToOne(Cart).mapToPk().primary().fieldName("user_id"),
    variantId: p.uuid().primary(),
    quantity: p.integer(),
    /** The cart's count of changes when it was added: the order in which the cart shows its items. */
    position: p.bigint(),
    version: p.integer().version(),
  },
  checks: [{ name: "cart_item_quantity_check", expression: `quantity >= 1 and quantity <= ${MAX_QUANTITY}` }],
});

/** Some units of one variant in a cart. */
export class CartItem extends itemSchema.class {
  static notFound(key: { userId: string; variantId: string }): DomainError {
    return new DomainError("CART_ITEM_NOT_FOUND", "the cart holds no such item", { variant_id: key.variantId });
  }
}
itemSchema.setClass(CartItem);

/** In the order in which the cart shows them. */
export function inCartOrder(items: readonly CartItem[]): CartItem[] {
  return items.toSorted((a, b) => Number(a.position - b.position));
}

/** What a user means to buy. It reserves nothing. */
export class Cart extends cartSchema.class {
  static open(userId: string): Cart {
    return Object.assign(new Cart(), { userId, changes: 0n });
  }

  /** A new item. Refused with INSUFFICIENT_STOCK, or CART_FULL when there are MAX_CART_ITEMS `present`. */
  add(variant: Variant, quantity: number, present: number): CartItem {
    if (present >= MAX_CART_ITEMS) {
      throw new DomainError("CART_FULL", "the cart holds as many items as an order takes", {
        limit: String(MAX_CART_ITEMS),
      });
    }
    variant.assertAvailable(quantity);
    this.changes += 1n;
    return Object.assign(new CartItem(), {
      userId: this.userId,
      variantId: variant.id,
      quantity,
      position: this.changes,
    });
  }

  /** Sets the units of an item. Refused with INSUFFICIENT_STOCK, or ARGUMENT_INVALID above MAX_QUANTITY. */
  setQuantity(item: CartItem, variant: Variant, quantity: number): void {
    if (quantity > MAX_QUANTITY) {
      throw new DomainError(
        "ARGUMENT_INVALID",
        "the cart would hold too many units",
        { variant_id: variant.id },
        {
          violations: [{ field: "quantity", description: `the cart would hold more than ${MAX_QUANTITY} units` }],
        },
      );
    }
    variant.assertAvailable(quantity);
    item.quantity = quantity;
    this.changes += 1n;
  }

  /** To be called for each change that takes items out. */
  removed(): void {
    this.changes += 1n;
  }
}
cartSchema.setClass(Cart);
