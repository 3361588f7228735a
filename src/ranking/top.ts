/** What sells best: the question and its answer. */

export type TopQuery = Readonly<{ days: number; limit: number; byVariant: boolean }>;

/** `variantId` and `variantName` are empty when grouped by product. */
export type TopProduct = Readonly<{
  productId: string;
  variantId: string;
  productName: string;
  variantName: string;
  unitsSold: bigint;
}>;

/** `asOf`: sales up to here are counted. */
export type Top = Readonly<{ products: readonly TopProduct[]; asOf: Date }>;
