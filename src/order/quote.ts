import { IssuedCoupon } from "../coupon/coupon.entity.ts";
import { DomainError } from "../error.ts";
import { Variant } from "../product/product.entity.ts";
import { OrderLine, type Totals, totalsOf } from "./order.entity.ts";

/** Something that would keep an order from being placed, and the line or coupon it belongs to. */
export type Obstacle = Readonly<{ error: DomainError; variantId?: string; issuedCouponId?: string }>;

/** What an order would come to. The lines leave out unknown variants. */
export type Quote = Totals & Readonly<{ lines: readonly OrderLine[]; obstacles: readonly Obstacle[] }>;

/** What `refuse` refuses, or undefined. */
function refusalOf(refuse: () => void): DomainError | undefined {
  try {
    refuse();
    return undefined;
  } catch (error) {
    if (error instanceof DomainError) return error;
    throw error;
  }
}

/** Adds up what is wanted. `coupon` is the id alone when the user holds no such coupon. */
export function quoteOf(
  wanted: readonly { variantId: string; quantity: number }[],
  variants: ReadonlyMap<string, Variant>,
  coupon: IssuedCoupon | string | undefined,
  now: Date,
): Quote {
  const obstacles: Obstacle[] = [];
  const lines = wanted.flatMap(({ variantId, quantity }) => {
    const variant = variants.get(variantId);
    const error = variant ? refusalOf(() => variant.assertAvailable(quantity)) : Variant.notFound({ id: variantId });
    if (error) obstacles.push({ error, variantId });
    return variant ? [OrderLine.of(variant, quantity)] : [];
  });
  if (wanted.length === 0) obstacles.push({ error: new DomainError("CART_EMPTY", "there is nothing in the cart") });
  if (coupon === undefined) return { ...totalsOf(lines, undefined, now), lines, obstacles };
  if (typeof coupon === "string") {
    obstacles.push({ error: IssuedCoupon.notFound({ id: coupon }), issuedCouponId: coupon });
    return { ...totalsOf(lines, undefined, now), lines, obstacles };
  }
  const error = refusalOf(() => totalsOf(lines, coupon, now));
  if (error) obstacles.push({ error, issuedCouponId: coupon.id });
  return { ...totalsOf(lines, error ? undefined : coupon, now), lines, obstacles };
}
