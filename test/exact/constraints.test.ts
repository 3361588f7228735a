/**
 * The last line: what the schema refuses whoever writes, and what it must not hold. Each constraint refuses a statement
 * that the schema without it accepts, so that it is this constraint and no other one that keeps the rule.
 */
import { randomUUID } from "node:crypto";
import pg, { type DatabaseError, type Pool, type PoolClient } from "pg";
import { beforeAll, describe, expect, test, vi } from "vitest";
import { Exchange } from "../../src/db/exchange.ts";
import { createDatabase } from "../support/database.ts";
import { openDatabase, rankingCaughtUp } from "./audit.ts";
import { callOf, newShop, openReplica, type Replica } from "./verbs.ts";

let database: Pool;
let replica: Replica;

/** Something in every table: a paid order with a coupon, and one more thing in the cart. */
async function fill(): Promise<void> {
  const { userId, variantIds } = await newShop(replica, 1_000n, [{ price: 100n, stock: 10 }]);
  const [variantId = ""] = variantIds;
  const validUntil = new Date(Date.now() + 86_400_000);
  const terms = { discountAmount: 1n, discountPercent: null, maxDiscount: null, minOrderAmount: 0n };
  const coupon = { ...terms, name: "A coupon", totalQuantity: 5, perUserLimit: 1, validFrom: undefined, validUntil };
  const { id: couponId } = await replica.coupons.create(callOf(), coupon);
  const { id: issuedCouponId } = await replica.coupons.claim(callOf(), { userId, couponId });
  await replica.carts.addItem(callOf(), { userId, variantId, quantity: 1, rejectPresent: false });
  const lines = [{ variantId, quantity: 1 }];
  await replica.orders.checkout(callOf(), { userId, lines, fromCart: false, issuedCouponId, expectedTotal: undefined });
  await replica.ranking.top({ days: 3, byVariant: false, limit: 5 });
  await replica.ranking.project();
  await rankingCaughtUp(database, () => replica.ranking.project());
  await database.query(
    "insert into gateway_refund select order_id, id, id, 1, 'PENDING', 0, now(), now() from payment on conflict do nothing",
  );
  await database.query(
    "insert into event_undelivered select aggregateid, id, aggregatetype, xid, 1, now(), false, '' from event limit 1 on conflict do nothing",
  );
}

beforeAll(async () => {
  const url = await createDatabase();
  database = openDatabase(url);
  replica = await openReplica(url);
  await fill();
});

/** For each CHECK an update of one row that breaks it. */
const checks: Record<string, string> = {
  wallet_balance_check: "update wallet set balance = -1",
  cart_item_quantity_check: "update cart_item set quantity = 10000",
  coupon_issued_check: "update coupon set issued = total_quantity + 1",
  coupon_discount_check: "update coupon set discount_percent = 5",
  event_type_check: "update event set type = 'order.lost'",
  ledger_entry_balance_after_check: "update ledger_entry set balance_after = -1",
  ledger_entry_kind_check: "update ledger_entry set kind = 'GIFT'",
  shop_order_total_check: "update shop_order set total = total + 1",
  shop_order_state_check: "update shop_order set state = 'LOST'",
  order_line_quantity_check: "update order_line set quantity = 0",
  order_line_returned_check: "update order_line set returned = quantity + 1",
  payment_amount_check: "update payment set refunded_amount = amount + 1",
  payment_refunding_check: "update payment set state = 'REFUNDING'",
  payment_method_check: "update payment set method = 'CASH'",
  payment_state_check: "update payment set state = 'LOST'",
  gateway_refund_amount_check: "update gateway_refund set amount = 0",
  gateway_refund_state_check: "update gateway_refund set state = 'LOST', next_try_time = null",
  gateway_refund_try_check: "update gateway_refund set next_try_time = null",
  payment_event_state_check: "update payment_event set state = 'LOST'",
  variant_stock_check: "update variant set stock = -1",
  variant_price_check: "update variant set price = -1",
};

/** One row of a table once more, with other values in some columns. */
const again = (table: string, changes: object = {}) =>
  `insert into ${table} select (jsonb_populate_record(t, '${JSON.stringify(changes)}')).* from ${table} t limit 1`;

/** For each unique index a second row that only this index refuses. */
const uniques: Record<string, string> = {
  shop_user_pkey: again("shop_user"),
  wallet_pkey: again("wallet"),
  ledger_entry_pkey: again("ledger_entry"),
  product_pkey: again("product"),
  variant_pkey: again("variant", { position: 2 }),
  variant_product_id_position_unique: again("variant", { id: randomUUID() }),
  coupon_pkey: again("coupon"),
  issued_coupon_pkey: again("issued_coupon", { ordinal: 2 }),
  issued_coupon_user_id_coupon_id_ordinal_unique: again("issued_coupon", { id: randomUUID() }),
  cart_pkey: again("cart"),
  cart_item_pkey: again("cart_item"),
  shop_order_pkey: again("shop_order"),
  order_line_pkey: again("order_line"),
  payment_pkey: again("payment", { state: "REFUNDED" }),
  payment_completed_once: again("payment", { id: randomUUID() }),
  // Two at once.
  payment_pending_once: `insert into payment
    select r.* from payment p, (values ('${randomUUID()}'), ('${randomUUID()}')) ids (id),
           jsonb_populate_record(p, jsonb_build_object('id', ids.id, 'state', 'PENDING')) r`,
  payment_event_pkey: again("payment_event"),
  gateway_refund_pkey: again("gateway_refund"),
  event_pkey: again("event"),
  idempotency_pkey: again("idempotency"),
  ranking_bucket_pkey: again("ranking_bucket"),
  ranking_window_pkey: again("ranking_window"),
  ranking_total_pkey: again("ranking_total"),
  event_reader_pkey: again("event_reader"),
  event_undelivered_pkey: again("event_undelivered"),
};

async function inTransaction<T>(work: (client: PoolClient) => Promise<T>): Promise<T> {
  const client = await database.connect();
  try {
    await client.query("begin");
    return await work(client);
  } finally {
    await client.query("rollback");
    client.release();
  }
}

const namesOf = async (sql: string): Promise<string[]> =>
  (await database.query<{ name: string }>(sql)).rows.map(({ name }) => name).toSorted();

describe("refused by one constraint, and by nothing else", () => {
  test.for(Object.entries({ ...checks, ...uniques }))("%s", async ([name, statement]) => {
    const refusal = await inTransaction((client) =>
      client.query(statement).then(
        () => undefined,
        (error: DatabaseError) => error.constraint,
      ),
    );
    expect(refusal).toBe(name);
    const accepted = await inTransaction(async (client) => {
      const found = "select conrelid::regclass::text as owner from pg_constraint where conname = $1";
      const { rows } = await client.query<{ owner: string }>(found, [name]);
      const drop = rows[0] ? `alter table ${rows[0].owner} drop constraint ${name} cascade` : `drop index ${name}`;
      await client.query(drop);
      return (await client.query(statement)).rowCount;
    });
    expect(accepted).toBeGreaterThan(0);
  });

  test("there is no CHECK and no unique index that is not in these lists", async () => {
    const ours = "connamespace = 'public'::regnamespace";
    expect(await namesOf(`select conname as name from pg_constraint where contype = 'c' and ${ours}`)).toEqual(
      Object.keys(checks).toSorted(),
    );
    const indexes = await namesOf(
      `select c.relname as name from pg_index i join pg_class c on c.oid = i.indexrelid
        where i.indisunique and c.relnamespace = 'public'::regnamespace and i.indrelid <> 'migration'::regclass`,
    );
    expect(indexes).toEqual(Object.keys(uniques).toSorted());
  });
});

describe("traps 5 and 6: what would make everybody wait for everybody", () => {
  test("foreign keys stay inside an aggregate", async () => {
    const names = await namesOf(
      `select conrelid::regclass || ' -> ' || confrelid::regclass as name from pg_constraint
        where contype = 'f' and connamespace = 'public'::regnamespace`,
    );
    expect(names).toEqual(["cart_item -> cart", "variant -> product"]);
  });

  test("no triggers, rules, functions, and no sequences", async () => {
    expect(await namesOf("select tgname as name from pg_trigger where not tgisinternal")).toEqual([]);
    expect(await namesOf("select rulename as name from pg_rules where schemaname = 'public'")).toEqual([]);
    expect(await namesOf("select proname as name from pg_proc where pronamespace = 'public'::regnamespace")).toEqual(
      [],
    );
    const sequences = "select relname as name from pg_class where relkind = 'S'";
    // Migrations are numbered; nobody buys a migration.
    expect(await namesOf(sequences)).toEqual(["migration_id_seq"]);
  });

  test("primary keys begin with the id of the aggregate that owns the row", async () => {
    const owners = await namesOf(
      `select c.relname || '.' || a.attname as name from pg_index i join pg_class c on c.oid = i.indrelid
         join pg_attribute a on a.attrelid = c.oid and a.attnum = i.indkey[0]
        where i.indisprimary and c.relnamespace = 'public'::regnamespace
          and c.relname in ('order_line', 'ledger_entry', 'issued_coupon', 'cart_item', 'payment', 'payment_event')`,
    );
    expect(owners).toEqual([
      "cart_item.user_id",
      "issued_coupon.user_id",
      "ledger_entry.user_id",
      "order_line.order_id",
      "payment.order_id",
      "payment_event.order_id",
    ]);
  });

  test("a purchase notifies nobody, draws from no sequence, and leaves nothing in its session", async () => {
    const query = vi.spyOn(pg.Client.prototype, "query");
    await fill();
    const texts = (query.mock.calls as unknown[][]).flatMap(([first]) =>
      first instanceof Exchange
        ? first.statements.map(({ text }) => text)
        : ((first as { text?: string } | undefined)?.text ?? String(first)),
    );
    query.mockRestore();
    expect(texts.some((text) => text.includes('insert into "shop_order"'))).toBe(true);
    expect(texts.filter((text) => /\b(notify|listen|nextval|advisory|set session|create temp)\b/i.test(text))).toEqual(
      [],
    );
  });
});
