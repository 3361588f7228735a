/** A ranking whose events are written by the test, and counted in its process. */
import { randomUUID } from "node:crypto";
import type { Client } from "pg";
import { v7 } from "uuid";
import type { DatabaseOptions } from "../../src/db/database.ts";
import { Ranking } from "../../src/ranking/ranking.service.ts";
import { connect, open } from "../db/harness.ts";
import { openDatabase, rankingCaughtUp } from "../exact/audit.ts";
import { createDatabase } from "../support/database.ts";

export const HOUR = 3_600_000;
export const hourOf = (time: Date) => new Date(Math.floor(time.getTime() / HOUR) * HOUR);

export type Line = Readonly<{ variant_id: string; product_id: string; quantity: number }>;
export type Sale = Readonly<{
  type?: "order.paid" | "order.cancelled";
  payTime: Date;
  /** When it happened, if that was not when it was paid. */
  time?: Date;
  lines: readonly Line[];
}>;

/** Writes the event of an order. */
export async function addSale(client: Client, { type = "order.paid", payTime, time = payTime, lines }: Sale) {
  await client.query(
    "insert into event (id, aggregatetype, aggregateid, type, payload, create_time) values ($1, 'order', $2, $3, $4, $5)",
    [v7({ msecs: time.getTime() }), randomUUID(), type, { pay_time: payTime, lines }, time],
  );
}

export async function openSales(options: DatabaseOptions = {}) {
  const url = await createDatabase();
  const { db } = await open(url, options);
  const database = openDatabase(url);
  const client = await connect(url);
  const ranking = new Ranking(db);
  const variantId = randomUUID();
  const lineOf = (quantity: number): Line => ({ variant_id: variantId, product_id: variantId, quantity });
  /** Something happens to an order that was paid at that time. */
  const happen = (type: Sale["type"] & string, payTime: Date, quantity: number, time = payTime) =>
    addSale(client, { type, payTime, time, lines: [lineOf(quantity)] });
  /** Something is sold. */
  const sell = (payTime: Date, quantity: number, teller = client) =>
    addSale(teller, { payTime, lines: [lineOf(quantity)] });
  const caughtUp = () => rankingCaughtUp(database, async () => void (await ranking.project()));
  const buckets = async () => {
    const { rows } = await client.query("select hour, quantity::int from ranking_bucket order by hour");
    return rows.map(({ hour, quantity }) => [hour, quantity]);
  };
  return { url, db, client, ranking, happen, sell, caughtUp, buckets };
}
