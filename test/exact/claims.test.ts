/** Who expires which order: claims are of one process at a time, end by themselves, and what fails is in nobody's way. */
import type { EntityManager } from "@mikro-orm/postgresql";
import type { Pool } from "pg";
import { beforeEach, expect, test } from "vitest";
import { lagOf, MOST } from "../../src/db/lag.ts";
import { claimOverdue, expireOverdue, overdueOrders } from "../../src/order/expiry.ts";
import { holdVariant } from "../db/harness.ts";
import { createDatabase } from "../support/database.ts";
import { broken } from "../support/invariants.ts";
import { openDatabase, value } from "./audit.ts";
import { many, serverOn } from "./shop.ts";
import { callOf, expireAll, newShop, ORDER_TTL, openReplica, type Replica } from "./verbs.ts";

const SECOND = 1_000;

let url: string;
let database: Pool;
/** Of all replicas. */
let now: number;

beforeEach(async () => {
  url = await createDatabase();
  database = openDatabase(url);
  now = Date.now();
});

const replicaOn = () => openReplica(url, { clock: () => new Date(now) });

/** Places so many orders of one unit, whose time is over then; the first ones were placed first. Returns their ids. */
async function overdue(replica: Replica, count: number): Promise<{ variantId: string; ids: string[] }> {
  const { userId, variantIds } = await newShop(replica, 0n, [{ price: 100n, stock: count }]);
  const [variantId = ""] = variantIds;
  const wanted = { userId, lines: [{ variantId, quantity: 1 }], fromCart: false };
  const purchase = { ...wanted, issuedCouponId: undefined, expectedTotal: undefined };
  const placed = await many(count, () => replica.orders.place(callOf(), purchase, undefined));
  const ids = placed.map(({ order }) => order.id);
  await database.query(
    `update shop_order o set expire_time = o.expire_time + ids.n * interval '1 ms'
       from unnest($1::uuid[]) with ordinality ids (id, n) where o.id = ids.id`,
    [ids],
  );
  now += ORDER_TTL + 60 * SECOND;
  return { variantId, ids };
}

/** Lets no change of these orders' state be written, until the returned function is called. */
async function poison(ids: readonly string[]): Promise<() => Promise<unknown>> {
  await database.query("create table poisoned as select unnest($1::uuid[]) as id", [ids]);
  await database.query(`
    create function refuse() returns trigger language plpgsql as $$ begin
      if exists (select from poisoned where id = new.id) then raise exception 'poisoned'; end if;
      return new;
    end $$;
    create trigger refuse before update of state on shop_order for each row execute function refuse()`);
  return () => database.query("truncate poisoned");
}

const states = async () => {
  const { rows } = await database.query("select state, count(*)::int from shop_order group by 1");
  return Object.fromEntries(rows.map(({ state, count }) => [state, count]));
};

/** As one of several processes does: until nothing is left for it. Returns how many were its own. */
async function expireUntilDone({ db }: Replica, limit: number): Promise<number> {
  let all = 0;
  for (;;) {
    const { claimed, failures } = await expireOverdue(db, limit);
    expect(failures).toEqual([]);
    all += claimed;
    if (claimed === 0) return all;
  }
}

test("two processes share 500 orders: each is claimed once, and expired once", async () => {
  const replicas = [await replicaOn(), await replicaOn()];
  const { variantId } = await overdue(replicas[0] as Replica, 500);
  const claimed = await Promise.all(replicas.map((replica) => expireUntilDone(replica, 20)));
  expect(claimed.reduce((sum, one) => sum + one)).toBe(500);
  expect(Math.min(...claimed)).toBeGreaterThan(0);
  expect(await states()).toEqual({ EXPIRED: 500 });
  const { rows } = await database.query("select expire_tries as tries, count(*)::int from shop_order group by 1");
  expect(rows).toEqual([{ tries: 1, count: 500 }]);
  expect(await value(database, "select count(*)::int from event where type = 'order.expired'")).toBe(500);
  expect(await broken(database, { [variantId]: 500 })).toEqual([]);
});

test("orders that can't be expired keep no others from it, also when all of them are due again", async () => {
  const replica = await replicaOn();
  const { variantId, ids } = await overdue(replica, 200);
  const heal = await poison(ids.slice(0, 150));
  for (let turn = 0; turn < 2; turn += 1) await expireOverdue(replica.db, 100);
  expect(await states()).toEqual({ PENDING_PAYMENT: 150, EXPIRED: 50 });
  const tries = "select array_agg(distinct expire_tries) from shop_order where state = 'PENDING_PAYMENT'";
  expect(await value(database, tries)).toEqual([1]);
  // Nobody tries them before their time.
  expect(await expireOverdue(replica.db, 100)).toEqual({ claimed: 0, failures: [] });

  const more = await overdue(replica, 10);
  const { claimed, failures } = await expireOverdue(replica.db, 10);
  expect([claimed, failures.length]).toEqual([20, 10]);
  expect(await states()).toEqual({ PENDING_PAYMENT: 150, EXPIRED: 60 });

  await heal();
  now += 10 * SECOND;
  await expireAll(replica);
  expect(await states()).toEqual({ EXPIRED: 210 });
  expect(await broken(database, { [variantId]: 200, [more.variantId]: 10 })).toEqual([]);
});

test("the pause doubles from a second up to five minutes", async () => {
  const replica = await replicaOn();
  const { ids } = await overdue(replica, 1);
  await poison(ids);
  const pauses: number[] = [];
  for (let turn = 0; turn < 11; turn += 1) {
    expect((await expireOverdue(replica.db, 1)).failures).toHaveLength(1);
    const next = await value<Date>(database, "select next_expire_time from shop_order");
    pauses.push((next.getTime() - now) / SECOND);
    now = next.getTime() - 1;
    expect((await expireOverdue(replica.db, 1)).claimed).toBe(0);
    now += 1;
  }
  expect(pauses).toEqual([1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
});

test("an order that a killed process had claimed is another one's after the lease", async () => {
  const other = await replicaOn();
  const { variantId } = await overdue(other, 1);
  now = Date.now();
  const hold = await holdVariant(url, variantId);
  const dying = await serverOn(url);
  await database.query("update shop_order set expire_time = now()");
  const tries = () => value(database, "select expire_tries from shop_order");
  await expect.poll(tries, { timeout: 10_000, interval: 5 }).toBe(1);
  dying.kill("SIGKILL");
  await dying.exited;
  await hold.release();
  now = Date.now() + 5 * SECOND;
  expect((await expireOverdue(other.db, 10)).claimed).toBe(0);
  now = Date.now() + 30 * SECOND;
  expect(await expireOverdue(other.db, 10)).toEqual({ claimed: 1, failures: [] });
  expect(await tries()).toBe(2);
  expect(await states()).toEqual({ EXPIRED: 1 });
});

test("a claim that has ended is not touched by the process that had it", async () => {
  const slow = await replicaOn();
  const { variantId } = await overdue(slow, 1);
  const hold = await holdVariant(url, variantId);
  const late = expireOverdue(slow.db, 1);
  await hold.waiting(1);
  // Another process's, from when the lease was over.
  const leaseEnd = new Date(now + 61 * SECOND);
  await database.query("update shop_order set expire_tries = 2, next_expire_time = $1", [leaseEnd]);
  expect((await late).failures).toMatchObject([{ reason: "CONFLICT" }]);
  await hold.release();
  expect(await value(database, "select next_expire_time from shop_order")).toEqual(leaseEnd);
});

/** The plan of what `ask` sends, which is carried out and taken back. */
async function planOf({ orm }: Replica, ask: (em: EntityManager) => Promise<unknown>): Promise<string> {
  const lines: string[] = [];
  const em = orm.em.fork();
  await em.begin();
  const execute = async (sql: string, values: unknown[]) => {
    const rows = await em.execute<Record<string, string>[]>(`explain (analyze, costs off) ${sql}`, values);
    lines.push(...rows.map((row) => row["QUERY PLAN"] ?? ""));
    return [{}];
  };
  await ask({ execute } as unknown as EntityManager);
  await em.rollback();
  return lines.join("\n");
}

test("what is due is found by index among a hundred thousand orders that wait, and so is the oldest", async () => {
  const replica = await replicaOn();
  await database.query(
    `insert into shop_order (id, user_id, state, subtotal, discount, total, create_time, expire_time, update_time,
                             expire_tries, next_expire_time)
     select gen_random_uuid(), gen_random_uuid(), 'PENDING_PAYMENT', 1, 0, 1, now(), now() + n * interval '1 min', now(),
            case when n <= 0 and n % 2 = 0 then 3 else 0 end, case when n <= 0 and n % 2 = 0 then now() end
       from generate_series(-9, 100000) n`,
  );
  for (const analyze of [false, true]) {
    if (analyze) await database.query("analyze shop_order");
    const claim = await planOf(replica, (em) => claimOverdue(em, new Date(), new Date(), 100));
    expect(claim).toMatch(/Scan using shop_order_pending_index/);
    expect(claim).toMatch(/Scan (using|on) shop_order_claimed_index/);
    expect(claim).toMatch(/Scan (using|on) shop_order_pkey/);
    expect(claim).not.toMatch(/Seq Scan|Rows Removed/);
    const lag = await planOf(replica, (em) => lagOf(em, overdueOrders));
    expect(lag).toMatch(/Scan using shop_order_pending_index/);
    expect(lag).not.toMatch(/Seq Scan|Rows Removed/);
  }
  expect(await replica.db.read((em) => lagOf(em, overdueOrders))).toMatchObject({ waiting: 10, failing: 5 });
  await database.query("update shop_order set expire_time = now() - interval '1 h'");
  const lag = await replica.db.read((em) => lagOf(em, overdueOrders));
  expect(lag).toMatchObject({ waiting: MOST, since: expect.any(Date) });
  expect(Math.floor(lag.seconds / 60)).toBe(60);
});
