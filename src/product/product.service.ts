import { randomUUIDv7 } from "node:crypto";
import { type Tx, touch, type Write } from "../db/command.ts";
import type { Database } from "../db/database.ts";
import { byId, type Page, type PageRequest, pageOf } from "../db/page.ts";
import { DomainError } from "../error.ts";
import { Event } from "../outbox/event.entity.ts";
import { MAX_VARIANTS, Product, Variant } from "./product.entity.ts";

export type NewVariant = Readonly<{ name: string; price: bigint; stock: number }>;

/** A product with its variants in their order. */
export type ProductWithVariants = Readonly<{ product: Product; variants: readonly Variant[] }>;

export type ProductChange = Readonly<{
  id: string;
  /** The version last seen. */
  version: bigint;
  name?: string | undefined;
  description?: string | undefined;
  variants: readonly Readonly<{ variantId: string; name?: string | undefined; price?: bigint | undefined }>[];
  addVariants: readonly NewVariant[];
}>;

/** The catalogue and its stock. */
export class Products {
  readonly #db: Database;

  constructor(db: Database) {
    this.#db = db;
  }

  create(
    call: Write,
    input: { name: string; description: string; variants: readonly NewVariant[] },
  ): Promise<ProductWithVariants> {
    return this.#db.write(call, {
      touches: [],
      decide: (tx) => {
        const product = Product.create(randomUUIDv7(), input.name, input.description, tx.now);
        tx.add(product);
        return { product, variants: addVariants(tx, product, 0, input.variants) };
      },
    });
  }

  /**
   * Changes what is given and leaves the rest.
   *
   * @throws DomainError PRODUCT_NOT_FOUND, VERSION_MISMATCH, VARIANT_NOT_FOUND for a variant that is not the product's
   */
  update(call: Write, change: ProductChange): Promise<ProductWithVariants> {
    const { id: productId } = change;
    return this.#db.write(call, {
      touches: async () => {
        const variants = await this.#db.list(Variant, { productId });
        // By their ids too: sales name them so, and must not run at the same time.
        return [
          touch(Product, { id: productId }),
          touch(Variant, { productId }),
          ...variants.map(({ id }) => touch(Variant, { id })),
        ];
      },
      decide: (tx) => {
        const product = tx.get(Product, { id: productId });
        product.assertRevision(change.version);
        product.edit(change, tx.now);
        const variants = inOrder(tx.list(Variant, { productId }));
        for (const variant of variants) variant.productName = product.name;
        for (const { variantId, name, price } of change.variants) {
          const variant = variants.find(({ id }) => id === variantId);
          if (!variant) throw Variant.notFound({ id: variantId });
          variant.name = name ?? variant.name;
          variant.price = price ?? variant.price;
        }
        return { product, variants: [...variants, ...addVariants(tx, product, variants.length, change.addVariants)] };
      },
    });
  }

  /**
   * Adds or takes away `delta` units.
   *
   * @throws DomainError VARIANT_NOT_FOUND, INSUFFICIENT_STOCK, ARGUMENT_INVALID when the stock would be too large
   */
  adjustStock(call: Write, input: { variantId: string; delta: number; reference: string }): Promise<Variant> {
    const { variantId: id, delta, reference } = input;
    return this.#db.write(call, {
      touches: [touch(Variant, { id })],
      decide: (tx) => {
        const variant = tx.get(Variant, { id });
        variant.adjust(delta);
        const facts = { variant_id: id, product_id: variant.productId, delta, stock: variant.stock, reference };
        tx.add(Event.of("stock.adjusted", id, facts, tx.now));
        return variant;
      },
    });
  }

  /** @throws DomainError PRODUCT_NOT_FOUND */
  async get(id: string): Promise<ProductWithVariants> {
    // The product first: with a version older than the variants an edit is refused, with a newer one it would undo another.
    const [[product], variants] = await this.#db.lists(Product, { id }, Variant, { productId: id });
    if (!product) throw Product.notFound({ id });
    return { product, variants: inOrder(variants) };
  }

  /** In the order asked for. @throws DomainError PRODUCT_NOT_FOUND for an unknown id */
  batchGet(ids: readonly string[]): Promise<ProductWithVariants[]> {
    return Promise.all(ids.map((id) => this.get(id)));
  }

  /** Newest first. @throws DomainError PAGE_TOKEN_INVALID */
  list(request: PageRequest): Promise<Page<ProductWithVariants>> {
    return this.#db.read(async (em) => {
      const page = await pageOf(
        "products",
        request,
        byId,
        (product: Product) => product.id,
        (after, limit) => em.find(Product, after ? { id: { $lt: after } } : {}, { limit, orderBy: { id: "desc" } }),
      );
      const ids = page.items.map(({ id }) => id);
      const variantsOf = Map.groupBy(await em.find(Variant, { productId: { $in: ids } }), (row) => row.productId);
      const items = page.items.map((product) => ({ product, variants: inOrder(variantsOf.get(product.id) ?? []) }));
      return { ...page, items };
    });
  }
}

function inOrder(variants: readonly Variant[]): Variant[] {
  return variants.toSorted((a, b) => a.position - b.position);
}

function addVariants(tx: Tx, product: Product, present: number, added: readonly NewVariant[]): Variant[] {
  if (present + added.length > MAX_VARIANTS) {
    const violations = [{ field: "add_variants", description: `a product has at most ${MAX_VARIANTS} variants` }];
    throw new DomainError("ARGUMENT_INVALID", "the product would have too many variants", {}, { violations });
  }
  return added.map((values, index) => {
    const variant = Variant.create(product, present + index + 1, { ...values, id: randomUUIDv7() });
    tx.add(variant);
    return variant;
  });
}
