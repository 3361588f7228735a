import { Client } from "pg";
import { expect, test } from "vitest";
import { entities } from "../src/app.ts";
import { createOrm, poolOf } from "../src/db/orm.ts";
import { createDatabase } from "./support/database.ts";

const PLACES = 2;

test("transactions whose connections break cost the pool no place, whatever they were doing", async () => {
  const url = await createDatabase();
  const admin = new Client({ connectionString: url });
  await admin.connect();
  const orm = await createOrm({ url, poolSize: PLACES, entities });

  async function breakAll(state: string): Promise<void> {
    const sessions = "from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()";
    const ready = `select count(*)::int as n ${sessions} and state = '${state}'`;
    await expect.poll(async () => (await admin.query(ready)).rows[0].n).toBe(PLACES);
    await admin.query(`select pg_terminate_backend(pid) ${sessions}`);
    await expect.poll(async () => (await admin.query(`select count(*)::int as n ${sessions}`)).rows[0].n).toBe(0);
  }

  function transactions(statement: string, then: Promise<void>): Promise<PromiseSettledResult<void>[]> {
    const work = Array.from({ length: PLACES }, () =>
      orm.em.fork().transactional(async (em) => {
        await em.execute(statement);
        await then;
      }),
    );
    return Promise.allSettled(work);
  }

  const active = transactions("select pg_sleep(60)", Promise.resolve());
  await breakAll("active");
  expect((await active).map(({ status }) => status)).toEqual(["rejected", "rejected"]);

  const { promise: broken, resolve: goOn } = Promise.withResolvers<void>();
  const idle = transactions("select 1", broken);
  await breakAll("idle in transaction");
  goOn();
  expect((await idle).map(({ status }) => status)).toEqual(["rejected", "rejected"]);

  const after = await transactions("select 1", Promise.resolve());
  expect(after.map(({ status }) => status)).toEqual(["fulfilled", "fulfilled"]);
  await orm.close();
  await admin.end();
});

test("a pool that ends while a connection is opened does end, whoever has asked for that one", async () => {
  const orm = await createOrm({ url: await createDatabase(), poolSize: PLACES, entities });
  const pool = await poolOf(orm);
  const before = pool.totalCount;
  const queries = Promise.allSettled(Array.from({ length: PLACES }, () => orm.em.fork().execute("select 1")));
  // It is counted from the moment at which it is being opened.
  while (pool.totalCount === before) await new Promise((resolve) => setImmediate(resolve));
  await orm.close();
  expect(pool).toMatchObject({ ended: true, totalCount: 0 });
  await queries;
}, 10_000);
