/** What sells best costs the same whatever was sold: how many rows and index entries Postgres reads for it. */
import { expect, test } from "vitest";
import { Ranking } from "../../src/ranking/ranking.service.ts";
import { connect, open } from "../db/harness.ts";
import { createDatabase } from "../support/database.ts";

const NOW = new Date("2026-11-27T12:30:00Z");
const HOURS = 2;
const QUESTIONS = [false, true].map((byVariant) => ({ days: 3, limit: 5, byVariant }));

test("an answer reads a few rows, of ten times the products, hours and events as many", async () => {
  const url = await createDatabase();
  // One connection, that can be told to say what it has read.
  const { db } = await open(url, { clock: () => NOW }, 1);
  const client = await connect(url);
  /** So many products of one variant that were sold in each hour, and as many events of it, all of them counted. */
  const sold = async (products: number) => {
    await client.query(
      `with made as (
         insert into product select gen_random_uuid(), 'a thing', '', now(), now(), 1 from generate_series(1, $1::int)
         returning id)
       insert into variant (id, product_id, position, product_name, name, price, stock, supplied)
       select id, id, 1, 'a thing', 'one', 1, 1, 1 from made`,
      [products],
    );
    await client.query(
      `insert into ranking_bucket (variant_id, hour, product_id, quantity)
       select id, date_trunc('hour', $1::timestamptz, 'UTC') - ago * interval '1 hour', id, 1 + random() * 100
         from product, generate_series(1, $2::int) ago on conflict do nothing`,
      [NOW, HOURS],
    );
    await client.query(
      `insert into event (id, aggregatetype, aggregateid, type, payload, create_time)
       select gen_random_uuid(), 'order', n, 'order.paid', '{"lines": []}', now() from generate_series(1, $1::int) n`,
      [products * HOURS],
    );
    await client.query(
      `update event_reader set (xid, event_id) = (select xid, id from event order by xid desc, id desc limit 1)
        where name = 'sales'`,
    );
    // Totals of them are made anew.
    await client.query("delete from ranking_window; delete from ranking_total");
    const ranking = new Ranking(db);
    for (const question of QUESTIONS) await ranking.top(question);
    await ranking.project();
    await client.query("vacuum analyze");
    return ranking;
  };
  const readSoFar = async () => {
    for (const one of [client, { query: (sql: string) => db.read((em) => em.execute(sql)) }]) {
      await one.query("select pg_stat_force_next_flush()");
    }
    const { rows } = await client.query<{ read: number }>(
      `select ((select sum(seq_tup_read) from pg_stat_user_tables)
             + (select sum(idx_tup_read) from pg_stat_user_indexes))::int as read`,
    );
    return rows[0]?.read as number;
  };
  const costOf = async (ranking: Ranking) => {
    const before = await readSoFar();
    for (let round = 0; round < 10; round += 1) {
      for (const question of QUESTIONS) expect((await ranking.top(question)).products).toHaveLength(5);
    }
    return ((await readSoFar()) - before) / 10;
  };
  // Of small tables Postgres reads the whole: it is cheaper.
  const few = await costOf(await sold(2_000));
  const many = await costOf(await sold(18_000));
  expect((await client.query("select count(*)::int from ranking_total")).rows).toEqual([{ count: 40_000 }]);
  expect(few).toBeLessThan(60);
  expect(many).toBeLessThan(60);
});
