import { defineEntity, p } from "@mikro-orm/core";
import { DomainError } from "../error.ts";

/** The most units of one variant that can be put in stock. */
export const MAX_STOCK = 1_000_000_000;
/** The most that can be in stock and sold together: whatever is given back fits the column. */
export const MAX_SUPPLIED = 2n ** 31n - 1n;
/** The most variants of one product. */
export const MAX_VARIANTS = 100;

const productSchema = defineEntity({
  name: "Product",
  tableName: "product",
  properties: {
    id: p.uuid().primary(),
    name: p.string().length(200),
    description: p.text(),
    createTime: p.datetime(),
    updateTime: p.datetime(),
    /** Counts edits, from 1: the version that callers see. Sales change variants only, so they don't count. */
    revision: p.integer(),
    version: p.integer().version(),
  },
});

/** What the catalogue shows. */
export class Product extends productSchema.class {
  static notFound(key: { id: string }): DomainError {
    return new DomainError("PRODUCT_NOT_FOUND", "there is no such product", { product_id: key.id });
  }

  static create(id: string, name: string, description: string, now: Date): Product {
    return Object.assign(new Product(), { id, name, description, createTime: now, updateTime: now, revision: 1 });
  }

  /** Refuses with VERSION_MISMATCH an edit made on an older state. */
  assertRevision(seen: bigint): void {
    if (BigInt(this.revision) !== seen) {
      throw new DomainError("VERSION_MISMATCH", "the product has changed since that version", {
        product_id: this.id,
        version: String(this.revision),
      });
    }
  }

  /** Changes what is given. Every edit counts as one, also when only variants change. */
  edit(change: { name?: string | undefined; description?: string | undefined }, now: Date): void {
    this.name = change.name ?? this.name;
    this.description = change.description ?? this.description;
    this.revision += 1;
    this.updateTime = now;
  }
}
productSchema.setClass(Product);

const variantSchema = defineEntity({
  name: "Variant",
  tableName: "variant",
  properties: {
    id: p.uuid().primary(),
    productId: () => p.manyToOne(Product).mapToPk().fieldName("product_id"),
    /** Place among the variants of its product, from 1. */
    position: p.integer(),
    /** The product's name, kept here so that a sale reads one row only. */
    productName: p.string().length(200),
    name: p.string().length(100),
    price: p.bigint(),
    stock: p.integer(),
    /** All that was ever put in, less what was taken out by hand: the stock and the units of orders that are waiting or paid. */
    supplied: p.bigint(),
    /** Changes other than of the stock. */
    edits: p.integer().default(0),
    version: p.integer().version(),
  },
  uniques: [{ properties: ["productId", "position"] }],
  checks: [
    // No upper bound: what cancelled orders give back has to fit, also when the shelf was filled up meanwhile.
    { name: "variant_stock_check", expression: "stock >= 0" },
    { name: "variant_price_check", expression: "price >= 0" },
  ],
});

/** What is sold: it has the price and the stock. */
export class Variant extends variantSchema.class {
  static readonly counters = ["stock", "supplied"];

  static notFound(key: { id: string }): DomainError {
    return new DomainError("VARIANT_NOT_FOUND", "there is no such variant", { variant_id: key.id });
  }

  static create(
    product: Product,
    position: number,
    values: { id: string; name: string; price: bigint; stock: number },
  ): Variant {
    const { id: productId, name: productName } = product;
    const { id, name, price, stock } = values;
    const supplied = BigInt(stock);
    return Object.assign(new Variant(), { id, productId, position, productName, name, price, stock, supplied });
  }

  /** Refuses with INSUFFICIENT_STOCK a quantity that the stock does not cover. */
  assertAvailable(quantity: number): void {
    if (this.stock < quantity) {
      throw new DomainError("INSUFFICIENT_STOCK", "there are not enough units left", {
        variant_id: this.id,
        available: String(this.stock),
        required: String(quantity),
      });
    }
  }

  /** Takes units out. Refused with INSUFFICIENT_STOCK when there are too few. */
  take(quantity: number): void {
    this.assertAvailable(quantity);
    this.stock -= quantity;
  }

  /** Puts units of an order back that was given up. */
  restore(quantity: number): void {
    this.stock += quantity;
  }

  /** Adds or takes away units by hand. Refused when there are too few, or there would be more than MAX_STOCK, or MAX_SUPPLIED. */
  adjust(delta: number): void {
    if (delta < 0) this.assertAvailable(-delta);
    if (delta > 0 && this.stock + delta > MAX_STOCK) throw this.tooLarge(`the stock would exceed ${MAX_STOCK}`);
    if (delta > 0 && this.supplied + BigInt(delta) > MAX_SUPPLIED) {
      throw this.tooLarge(`the stock, with all units that were sold, would exceed ${MAX_SUPPLIED}`);
    }
    this.stock += delta;
    this.supplied += BigInt(delta);
  }

  private tooLarge(description: string): DomainError {
    const violations = [{ field: "delta", description }];
    return new DomainError("ARGUMENT_INVALID", "the stock would be too large", { variant_id: this.id }, { violations });
  }
}
variantSchema.setClass(Variant);
