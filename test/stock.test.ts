/** However much is put into stock: what was sold can come back. */
import { randomUUIDv7 } from "node:crypto";
import { expect, test } from "vitest";
import { MAX_STOCK, MAX_SUPPLIED, Product, Variant } from "../src/product/product.entity.ts";

test("no more is put in than there is room for when all that was sold comes back", () => {
  const product = Product.create(randomUUIDv7(), "A thing", "", new Date());
  const variant = Variant.create(product, 1, { id: randomUUIDv7(), name: "One size", price: 1n, stock: MAX_STOCK });
  variant.take(MAX_STOCK);
  variant.adjust(MAX_STOCK);
  variant.take(MAX_STOCK);
  const left = Number(MAX_SUPPLIED) - 2 * MAX_STOCK;
  expect(() => variant.adjust(left + 1)).toThrow("too large");
  variant.adjust(left);
  expect(() => variant.adjust(1)).toThrow("too large");
  variant.restore(2 * MAX_STOCK);
  expect(variant.stock).toBe(2 ** 31 - 1);
  expect(variant.supplied).toBe(MAX_SUPPLIED);
});
