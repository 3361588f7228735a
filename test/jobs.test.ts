/** How far behind the background jobs are: as an operator sees it, and as the log tells it. */
import { randomUUID, randomUUIDv7 } from "node:crypto";
import { join } from "node:path";
import { Writable } from "node:stream";
import type { Client } from "pg";
import { pino } from "pino";
import { beforeEach, expect, onTestFinished, test, vi } from "vitest";
import { readConfig } from "../src/config.ts";
import { watchLags } from "../src/jobs.ts";
import { connect, open } from "./db/harness.ts";
import { serverOn } from "./exact/shop.ts";
import { createDatabase } from "./support/database.ts";
import { run } from "./support/processes.ts";

const SCRIPT = join(import.meta.dirname, "../scripts/jobs.ts");
const MINUTE = 60;
const HOUR = 60 * MINUTE;
const DAY = 24 * HOUR;

let url: string;
let client: Client;

beforeEach(async () => {
  url = await createDatabase();
  client = await connect(url);
});

const jobs = (args: readonly string[] = [], env: NodeJS.ProcessEnv = {}) =>
  run(process.execPath, [SCRIPT, ...args], { env: { DATABASE_URL: url, ...env } }).exited;

async function lags(env: NodeJS.ProcessEnv = {}) {
  const { code, stdout, stderr } = await jobs(["--json"], env);
  expect([code, stderr]).toEqual([0, ""]);
  return JSON.parse(stdout) as { job: string; waiting: number; seconds: number; since: string | null }[];
}

/** An order whose time is over since then; `failures`: how often it could not be expired. */
const overdue = (seconds: number, failures = 0) =>
  client.query(
    `insert into shop_order (id, user_id, state, subtotal, discount, total, create_time, expire_time, update_time,
                             expire_tries, next_expire_time)
     values ($1, $2, 'PENDING_PAYMENT', 1, 0, 1, now(), now() - $3 * interval '1 s', now(), $4,
             case when $4 > 0 then now() + interval '1 h' end)`,
    [randomUUIDv7(), randomUUID(), seconds, failures > 0 ? failures + 1 : 0],
  );

/** An event that was written then. Returns its id. */
async function event(seconds: number, type = "stock.adjusted", aggregate: string = randomUUID()): Promise<string> {
  const time = new Date(Date.now() - seconds * 1_000);
  const hex = time.getTime().toString(16).padStart(12, "0");
  const id = `${hex.slice(0, 8)}-${hex.slice(8)}-7${randomUUID().slice(15)}`;
  const values = [id, type.split(".")[0], aggregate, type, time];
  await client.query(
    `insert into event (id, aggregatetype, aggregateid, type, payload, create_time) values ($1, $2, $3, $4, '{}', $5)`,
    values,
  );
  return id;
}

/** All that is written by now is behind these readers. */
const read = (...readers: string[]) =>
  client.query(
    `update event_reader set xid = e.xid, event_id = e.id
       from (select xid, id from event order by xid desc, id desc limit 1) e where name = any($1)`,
    [readers],
  );

const payment = (state: string, seconds: number, tries: number, nextTry: number) =>
  client.query(
    `insert into payment (order_id, id, user_id, method, state, amount, refunded_amount, events, tries, next_try_time,
                          create_time, update_time)
     values ($1, $2, $3, 'EXTERNAL', $4, 1, 0, 1, $5, now() + $6 * interval '1 s', now() - interval '9 days',
             now() - $7 * interval '1 s')`,
    [randomUUIDv7(), randomUUIDv7(), randomUUID(), state, tries, nextTry, seconds],
  );

/** What is expected of a job: the figures, and a lag of so many seconds, give or take the time that the test takes. */
const lag = (job: string, seconds: number, waiting: number, failing = 0, failures = 0) => ({
  job,
  waiting,
  failing,
  failures,
  seconds: expect.toSatisfy((it: number) => it >= seconds && it < seconds + 20, `${seconds} s`),
  since: expect.toSatisfy((it: string) => Math.abs(Date.now() - seconds * 1_000 - Date.parse(it)) < 20_000, "since"),
});

const none = (job: string) => ({ job, waiting: 0, since: null, seconds: 0, failing: 0, failures: 0 });

test("nothing waits in an empty database", async () => {
  const names = [
    "order expiry",
    "payments",
    "refunds",
    "ranking",
    "event relay",
    "event retention",
    "idempotency purge",
    "ranking retention",
  ];
  expect(await lags()).toEqual(names.map(none));
  expect((await lags({ EVENT_SINK_URL: "off" })).map(({ job }) => job)).toEqual(
    names.filter((job) => job !== "event relay"),
  );
  const { code, stdout } = await jobs(["--max-lag", "0s"]);
  expect(code).toBe(0);
  expect(stdout).toMatch(/^JOB +WAITING +LAG +SINCE +TRIED IN VAIN\norder expiry +0 +- +- +-\n/);
});

test("the lag is that of the oldest piece that should have been done, whatever waits beside it", async () => {
  await overdue(90);
  await overdue(5 * MINUTE, 3);
  await overdue(-HOUR);
  // A gateway has 10 s to answer. The second was begun a moment ago, the third is being asked for the first time.
  await payment("PENDING", HOUR, 6, 200);
  await payment("PENDING", 1, 0, 14);
  await client.query(
    `insert into gateway_refund (order_id, id, payment_id, amount, state, tries, next_try_time, create_time)
     values ($1, $1, $1, 5, 'PENDING', 4, now() + interval '11 s', now() - interval '9 h'),
            ($1, $2, $1, 5, 'PENDING', 0, now() - interval '4 minutes', now() - interval '9 h'),
            ($1, $3, $1, 5, 'COMPLETED', 9, null, now() - interval '9 h')`,
    [randomUUIDv7(), randomUUIDv7(), randomUUIDv7()],
  );
  await payment("COMPLETED", 2 * HOUR, 0, 0);
  await event(33 * DAY);
  const given = await event(33 * DAY + HOUR, "stock.adjusted", "sick");
  await event(32 * DAY - HOUR);
  await read("sales", "sink");
  // Given up: it is for people, and kept as long as they need.
  await client.query(
    "insert into event_undelivered select 'sick', id, 'stock', xid, 9, now(), true, '' from event where id = $1",
    [given],
  );
  const aside = await event(7 * MINUTE, "stock.adjusted", "ill");
  await read("sales", "sink");
  await client.query(
    "insert into event_undelivered select 'ill', id, 'stock', xid, 4, now(), false, '' from event where id = $1",
    [aside],
  );
  await event(2 * MINUTE, "order.paid");
  await event(1 * MINUTE);
  for (const age of [DAY + 3 * MINUTE, DAY - MINUTE]) {
    await client.query(
      "insert into idempotency select 'test', 'rpc', gen_random_uuid(), '', '', now() - $1 * interval '1 s'",
      [age],
    );
  }
  await client.query(
    `insert into ranking_bucket select $1::uuid, now() - 31 * interval '24 h' - n * interval '1 h', $1::uuid, 1
       from generate_series(-1, 2) n`,
    [randomUUIDv7()],
  );
  expect(await lags()).toEqual([
    lag("order expiry", 5 * MINUTE, 2, 1, 3),
    lag("payments", HOUR - 10, 1, 1, 5),
    lag("refunds", 4 * MINUTE, 2, 1, 3),
    lag("ranking", 2 * MINUTE, 1),
    lag("event relay", 7 * MINUTE, 3, 1, 4),
    lag("event retention", DAY, 1),
    lag("idempotency purge", 3 * MINUTE, 1),
    lag("ranking retention", 2 * HOUR, 3),
  ]);
  const late = await jobs(["--max-lag", "2h"]);
  expect(late).toMatchObject({ code: 1, stderr: "behind by more than 2h: event retention, ranking retention\n" });
  expect(late.stdout).toMatch(/^order expiry +2 +5m +\S+Z +1, one of them 3 times$/m);
  expect(await jobs(["--max-lag", "2d"])).toMatchObject({ code: 0, stderr: "" });
});

test.each([
  [["--max-lag", "60"], /^--max-lag must be a duration such as 90s/],
  [["--max"], /./],
])("says how it is used: %j", async (args, message) => {
  expect(await jobs(args)).toMatchObject({ code: 1, stdout: "", stderr: expect.stringMatching(message) });
});

test("the log tells once that a job is behind, and once that it has caught up", async () => {
  const { db } = await open(url);
  const lines: { msg: string; job: string; level: number; waiting?: number }[] = [];
  const stream = new Writable({
    write: (line, _encoding, done) => {
      lines.push(JSON.parse(line));
      done();
    },
  });
  const config = readConfig({ DATABASE_URL: url });
  let looks = 0;
  const counting = new Proxy(db, {
    get: (target, name) => {
      if (name === "read") looks += 1;
      const member = Reflect.get(target, name);
      return typeof member === "function" ? member.bind(target) : member;
    },
  });
  const watch = watchLags(config, pino({ level: "info" }, stream), counting, 5);
  onTestFinished(() => watch.stop());
  /** Waits until it has looked from the beginning to the end. */
  const looked = async () => {
    const before = looks;
    await vi.waitFor(() => expect(looks).toBeGreaterThan(before + 2), { timeout: 10_000, interval: 5 });
  };
  await overdue(30);
  await looked();
  expect(lines).toEqual([]);
  for (let turn = 1; turn <= 2; turn += 1) {
    await overdue(61);
    await looked();
    expect(lines).toHaveLength(2 * turn - 1);
    expect(lines.at(-1)).toMatchObject({ msg: "a background job is behind", job: "order expiry", level: 40 });
    await client.query("update shop_order set state = 'EXPIRED'");
    await looked();
    expect(lines).toHaveLength(2 * turn);
    expect(lines.at(-1)).toMatchObject({ msg: "a background job has caught up", job: "order expiry", level: 30 });
  }
});

test("the service tells of an order that it can't expire, and that this job is behind", async () => {
  await client.query(`
    create function refuse() returns trigger language plpgsql as $$ begin raise exception 'poisoned'; end $$;
    create trigger refuse before update of state on shop_order for each row execute function refuse()`);
  await overdue(2 * MINUTE);
  const server = await serverOn(url);
  const log = await Promise.all([
    server.logged(/"orders":1,.*poisoned.*"orders could not be expired; they are tried again"/),
    server.logged(/"job":"order expiry","waiting":1,.*"a background job is behind"/),
  ]);
  expect(log.join()).not.toContain("a background job failed");
  expect((await server.stop()).code).toBe(0);
});
