import { defineEntity, p } from "@mikro-orm/core";

const bucketSchema = defineEntity({
  name: "RankingBucket",
  tableName: "ranking_bucket",
  properties: {
    variantId: p.uuid().primary(),
    /** Start of the hour in which the orders were paid. */
    hour: p.datetime().primary(),
    productId: p.uuid(),
    quantity: p.bigint(),
  },
  indexes: [{ properties: ["hour"] }],
});

/** Units of one variant paid for in one hour. */
export class RankingBucket extends bucketSchema.class {}
bucketSchema.setClass(RankingBucket);
