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

const windowSchema = defineEntity({
  name: "RankingWindow",
  tableName: "ranking_window",
  properties: {
    days: p.integer().primary(),
    byVariant: p.boolean().primary(),
    /** Start of the first hour that is counted. */
    since: p.datetime(),
    /** When somebody last wanted to know, give or take an hour. */
    askedTime: p.datetime(),
  },
});

/** A question that has totals. */
export class RankingWindow extends windowSchema.class {}
windowSchema.setClass(RankingWindow);

const totalSchema = defineEntity({
  name: "RankingTotal",
  tableName: "ranking_total",
  properties: {
    days: p.integer().primary(),
    byVariant: p.boolean().primary(),
    /** Of the product or of the variant. */
    id: p.uuid().primary(),
    units: p.bigint(),
  },
  indexes: [
    {
      name: "ranking_total_top_index",
      properties: ["days", "byVariant", "units", "id"],
      columns: [{ name: "days" }, { name: "by_variant" }, { name: "units", sort: "DESC" }, { name: "id" }],
    },
  ],
});

/** Units of a product or variant in one window. */
export class RankingTotal extends totalSchema.class {}
totalSchema.setClass(RankingTotal);
