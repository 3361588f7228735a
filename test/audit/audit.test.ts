/** `npm run audit`: what is broken is found by the invariant that says so, and nothing else is reported. */
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { invariants } from "../../src/audit/invariants.ts";
import { connect } from "../db/harness.ts";
import { GrpcClient } from "../exact/clients.ts";
import { clientsOf, fresh, many, newUser, newVariant, serverOn, tokenOf } from "../exact/shop.ts";
import { createDatabase } from "../support/database.ts";
import { addOrders } from "../support/history.ts";
import { run } from "../support/processes.ts";

const AUDIT = join(import.meta.dirname, "../../scripts/audit.ts");
const ORDERS = 60;

async function openHistory(orders = ORDERS) {
  const url = await createDatabase();
  const client = await connect(url);
  await addOrders(client, orders);
  return { url, client };
}

function audit(url: string, ...args: string[]) {
  return run(process.execPath, [AUDIT, ...args], { env: { DATABASE_URL: url } }).exited;
}

test("all is well: every invariant is named, with the rows that it is about", async () => {
  const { url } = await openHistory();
  const { code, stdout, stderr } = await audit(url);
  expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
  const lines = stdout.trimEnd().split("\n");
  const last = lines.pop();
  expect(lines.map((line) => line.replace(/: [\d,]+ rows of \w+$/, ""))).toEqual(
    Object.keys(invariants).map((name) => `ok       ${name}`),
  );
  expect(stdout).toContain(`the balance is the sum of the ledger: 3 rows of wallet\n`);
  expect(stdout).toContain(`and so was what became of it: ${ORDERS} rows of shop_order\n`);
  expect(last).toMatch(new RegExp(`^${lines.length} hold, 0 broken, 0 skipped; as of [-\\dT:.]+Z, in [\\d.]+ s$`));
});

test("an empty database is in order", async () => {
  const { code, stdout } = await audit(await createDatabase());
  expect(code).toBe(0);
  expect(stdout).toContain(`${Object.keys(invariants).length} hold, 0 broken, 0 skipped`);
});

/** One row of a table. */
const one = (table: string, where = "true") => `ctid = (select ctid from ${table} where ${where} limit 1)`;
const event = "insert into event (id, aggregatetype, aggregateid, type, payload, create_time)";

/** What is broken by hand, and the invariant that has to find the id that is returned. */
const corruptions: readonly (readonly [invariant: string, statement: string])[] = [
  [
    "the balance is the sum of the ledger",
    `update wallet set balance = balance + 1 where ${one("wallet")} returning user_id as id`,
  ],
  [
    "ledger entries are numbered without a gap, up to what the wallet counts",
    `update wallet set entries = entries + 1 where ${one("wallet")} returning user_id as id`,
  ],
  [
    "each ledger entry holds the balance that it led to",
    `update ledger_entry set balance_after = balance_after + 1 where ${one("ledger_entry")}
     returning user_id || '/' || seq as id`,
  ],
  [
    "each ledger entry belongs to a wallet",
    `insert into ledger_entry (user_id, seq, kind, amount, balance_after, reference, create_time)
     values (gen_random_uuid(), 1, 'CHARGE', 5, 5, '', now()) returning user_id || '/' || seq as id`,
  ],
  ["each user has a wallet", "insert into shop_user (id, name, create_time) values (uuidv7(), '', now()) returning id"],
  ["each user has a wallet", `delete from shop_user where ${one("shop_user")} returning id`],
  [
    "a coupon counts its issued pieces, and they are not more than there are",
    `update coupon set issued = issued + 1 where ${one("coupon")} returning id`,
  ],
  [
    "a coupon counts its issued pieces, and they are not more than there are",
    "alter table coupon drop constraint coupon_issued_check; update coupon set total_quantity = issued - 1 returning id",
  ],
  ["a coupon counts its issued pieces, and they are not more than there are", "delete from coupon returning id"],
  [
    "nobody holds more pieces of a coupon than one user may",
    `update issued_coupon set ordinal = 1000 where ${one("issued_coupon")} returning coupon_id || '/' || user_id as id`,
  ],
  [
    "a used piece and the one order that uses it know each other",
    `update issued_coupon set order_id = null where ${one("issued_coupon")} returning id`,
  ],
  [
    "each line is of an order, and an order's subtotal is the sum of its lines, numbered from 1",
    `update order_line set price = price + 1 where ${one("order_line")} returning order_id as id`,
  ],
  [
    "each line is of an order, and an order's subtotal is the sum of its lines, numbered from 1",
    `update order_line set line_no = 3 where ${one("order_line", "line_no = 2")} returning order_id as id`,
  ],
  [
    "the stock is what was supplied, less the units of orders that are waiting or paid",
    `update variant set stock = stock + 1 where ${one("variant")} returning id`,
  ],
  [
    "the stock is what was supplied, less the units of orders that are waiting or paid",
    `update variant set supplied = supplied - 1 where ${one("variant")} returning id`,
  ],
  [
    "a paid order has exactly one completed payment, no other order has one",
    `update shop_order set discount = discount + 1, total = total - 1 where ${one("shop_order", "state = 'PAID'")}
     returning id`,
  ],
  [
    "each payment belongs to an order, and holds its money as long as that is paid",
    // A free one.
    `with p as (
       insert into payment (order_id, id, user_id, method, state, amount, refunded_amount, events, create_time, update_time)
       select gen_random_uuid(), gen_random_uuid(), id, 'BALANCE', 'REFUNDED', 0, 0, 1, now(), now() from shop_user limit 1
       returning order_id, id
     ), h as (
       insert into payment_event (order_id, payment_id, seq, state, amount, cause, create_time)
       select order_id, id, 1, 'REFUNDED', 0, '', now() from p
     ), a as (${event} select uuidv7(), 'payment', id, 'payment.refunded', '{}', now() from p)
     select id from p`,
  ],
  [
    "the gateway is asked about what it has to settle, and about nothing else",
    `update payment set next_try_time = now() where ${one("payment")} returning id`,
  ],
  [
    "a payment from the wallet has one debit, and credits of what was refunded",
    `update ledger_entry set kind = 'CHARGE' where ${one("ledger_entry", "kind = 'REFUND'")} returning reference as id`,
  ],
  [
    "money leaves and returns for payments only",
    `with w as (update wallet set entries = entries + 1 where ${one("wallet")} returning user_id, entries, balance)
     insert into ledger_entry (user_id, seq, kind, amount, balance_after, reference, create_time)
     select user_id, entries, 'REFUND', 0, balance, 'a present', now() from w returning user_id || '/' || seq as id`,
  ],
  [
    "the history of a payment is numbered without a gap and ends in its state",
    `update payment_event set amount = amount + 1 where ${one("payment_event")} returning payment_id as id`,
  ],
  [
    "each order was announced once, and so was what became of it",
    `delete from event where ${one("event", "type = 'order.placed'")} returning aggregateid as id`,
  ],
  [
    "each order was announced once, and so was what became of it",
    `delete from event where ${one("event", "type = 'order.cancelled'")} returning aggregateid as id`,
  ],
  [
    "each order was announced once, and so was what became of it",
    `${event} select uuidv7(), 'order', id, 'order.expired', '{}', now() from shop_order where state = 'PENDING_PAYMENT' limit 1
     returning aggregateid as id`,
  ],
  [
    "each order was announced once, and so was what became of it",
    `${event} values (uuidv7(), 'order', 'an order that nobody knows', 'order.placed', '{}', now()) returning aggregateid as id`,
  ],
  [
    "each payment that came through or failed was announced once, and so was each refund",
    `delete from event where ${one("event", "type = 'payment.completed'")} returning aggregateid as id`,
  ],
  [
    "each payment that came through or failed was announced once, and so was each refund",
    `${event} select uuidv7(), 'payment', id, 'payment.failed', '{}', now() from payment limit 1 returning aggregateid as id`,
  ],
  [
    "each payment that came through or failed was announced once, and so was each refund",
    `delete from event where ${one("event", "type = 'payment.refunded'")} returning aggregateid as id`,
  ],
  [
    "units come back of orders that were paid, and an order of which all came back is cancelled",
    `update order_line set returned = 1 where ${one("order_line l", "exists (select from shop_order o where o.id = order_id and state = 'EXPIRED')")}
     returning order_id as id`,
  ],
  [
    "of a payment as much goes back as its state says",
    // In every other respect as it should be.
    `with p as (
       insert into payment (order_id, id, user_id, method, state, amount, refunded_amount, refunding_amount, events,
                            create_time, update_time)
       select id, gen_random_uuid(), user_id, 'EXTERNAL', 'FAILED', 5, 0, 5, 1, now(), now() from shop_order limit 1
       returning order_id, id
     ), h as (
       insert into payment_event (order_id, payment_id, seq, state, amount, cause, create_time)
       select order_id, id, 1, 'FAILED', 0, '', now() from p
     ), r as (
       insert into gateway_refund (order_id, id, payment_id, amount, state, next_try_time, create_time)
       select order_id, id, id, 5, 'PENDING', now(), now() from p
     ), a as (${event} select uuidv7(), 'payment', id, 'payment.failed', '{}', now() from p)
     select id from p`,
  ],
  [
    "the refunds that the gateway is asked for are those of its payments",
    `insert into gateway_refund (order_id, id, payment_id, amount, state, next_try_time, create_time)
     select order_id, id, id, 1, 'COMPLETED', null, now() from payment limit 1 returning payment_id as id`,
  ],
  [
    "each issued piece was announced once",
    `delete from event where ${one("event", "type = 'coupon.claimed'")} returning payload ->> 'issued_coupon_id' as id`,
  ],
  [
    "each issued piece was announced once",
    `${event} select uuidv7(), aggregatetype, aggregateid, type, payload, now() from event where type = 'coupon.claimed' limit 1
     returning payload ->> 'issued_coupon_id' as id`,
  ],
  [
    "the ranking counts the units of paid orders, in the hour of their payment",
    // Older than any hour that has totals.
    `update ranking_bucket set quantity = quantity + 1 where ${one("ranking_bucket", "hour < now() - interval '4 days'")}
     returning variant_id || '/' || hour as id`,
  ],
  [
    "the totals of the ranking are the sums of their hours",
    `update ranking_total set units = units + 1 where ${one("ranking_total")} returning days || '/' || id as id`,
  ],
];

describe("what is broken is found by one invariant, and by no other", () => {
  test.for(corruptions)("%s", async ([invariant, statement]) => {
    const { url, client } = await openHistory();
    const results = await client.query(statement);
    const { rows } = [results].flat().at(-1) ?? { rows: [] };
    expect(rows).toHaveLength(1);
    const { code, stdout } = await audit(url, "--json");
    const found = JSON.parse(stdout);
    const broken = found.invariants.filter(({ verdict }: { verdict: string }) => verdict !== "holds");
    expect(broken).toMatchObject([{ name: invariant, verdict: "broken", broken: 1, ids: [rows[0].id] }]);
    expect([code, found.holds]).toEqual([1, false]);
  });

  test("there is no invariant that is not in this list", () => {
    expect(new Set(corruptions.map(([invariant]) => invariant))).toEqual(new Set(Object.keys(invariants)));
  });
});

test("of many that break it, some are named", async () => {
  const { url, client } = await openHistory();
  const { rowCount } = await client.query("update payment set next_try_time = now()");
  const { code, stdout } = await audit(url);
  expect(code).toBe(1);
  const name = "the gateway is asked about what it has to settle, and about nothing else";
  const lines = stdout.split(`BROKEN   ${name}: `)[1]?.split("\n") ?? [];
  expect(lines[0]).toBe(`${rowCount} broken, of ${rowCount} rows of payment`);
  expect(lines.slice(1, 21)).toEqual(Array(20).fill(expect.stringMatching(/^ {11}[-0-9a-f]{36}$/)));
  expect(lines[21]).toBe(`           and ${(rowCount ?? 0) - 20} more`);
  expect(stdout).toContain(`${Object.keys(invariants).length - 1} hold, 1 broken, 0 skipped`);
});

test("for machines", async () => {
  const { url } = await openHistory();
  const { code, stdout } = await audit(url, "--json");
  expect(code).toBe(0);
  const { invariants: verdicts, ...rest } = JSON.parse(stdout);
  expect(rest).toEqual({ asOf: expect.any(String), seconds: expect.any(Number), holds: true });
  expect(verdicts[0]).toEqual({
    name: "the balance is the sum of the ledger",
    verdict: "holds",
    table: "wallet",
    rows: 3,
    broken: 0,
    ids: [],
    note: null,
  });
});

test("while the service sells, nothing is an alarm", async () => {
  const { url } = await openHistory();
  const server = await serverOn(url);
  const client = new GrpcClient(server, await tokenOf());
  const shop = clientsOf(client.transport);
  const variantId = await newVariant(shop, {}, 1n, 1_000_000);
  const users = await many(8, () => newUser(shop, 1_000_000n));
  let selling = true;
  let sold = 0;
  const buyers = users.map(async (userId) => {
    for (; selling; sold += 1) {
      const { order } = await shop.orders.checkout({ requestId: fresh(), userId, lines: [{ variantId, quantity: 1 }] });
      if (sold % 3 === 0) await shop.orders.cancelOrder({ requestId: fresh(), userId, orderId: order?.id ?? "" });
    }
  });
  for (let round = 0; round < 3; round += 1) {
    const before = sold;
    expect(await audit(url)).toMatchObject({ code: 0, stdout: expect.stringContaining("0 broken, 0 skipped") });
    expect(sold).toBeGreaterThan(before);
  }
  selling = false;
  await Promise.all(buyers);
  client.close();
  await server.stop();
});

describe("what can't be checked is one line, and exit code 2", () => {
  const refused = (stderr: RegExp) => ({ code: 2, stdout: "", stderr: expect.stringMatching(stderr) });

  test.each([[["--jason"]], [["now"]], [["--json", "now"]]])("arguments: %j", async (args) => {
    const { exited } = run(process.execPath, [AUDIT, ...args]);
    expect(await exited).toMatchObject(refused(/^[^\n]*(--jason|now)[^\n]*\n$/));
  });

  test("nobody there", async () => {
    expect(await audit("postgres://nobody:x@127.0.0.1:1/nothing")).toMatchObject(
      refused(/^[^\n]*ECONNREFUSED[^\n]*\n$/),
    );
    expect(await audit("postgres://nobody:x@localhost:1/nothing")).toMatchObject(
      refused(/^[^\n]*ECONNREFUSED[^\n]*\n$/),
    );
  });

  test("no such database", async () => {
    const url = new URL(await createDatabase());
    url.pathname = "nothing";
    expect(await audit(url.href)).toMatchObject(refused(/^[^\n]*database "nothing" does not exist[^\n]*\n$/));
  });

  test("another version's schema", async () => {
    const { url, client } = await openHistory();
    await client.query("delete from migration where id = (select max(id) from migration)");
    expect(await audit(url)).toMatchObject(refused(/^the schema of the database is not up to date[^\n]*\n$/));
  });
});
