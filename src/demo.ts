/** Fills a database with a shop: a small one to try things with, or one of any size to measure with. */
import { randomUUIDv7 } from "node:crypto";
import type { EntityManager, MikroORM } from "@mikro-orm/postgresql";

export type ShopSize = Readonly<{ products: number; users: number; coupons: number }>;

/** What `npm start` loads into an empty database. */
export const demoSize: ShopSize = { products: 100, users: 20, coupons: 3 };

/** Called with the rows written so far and the rows to write in all. */
export type Progress = (done: number, total: number) => void;

/** Rows in one statement. */
const CHUNK = 2_000;

const QUALITIES = ["Plain", "Bright", "Soft", "Sturdy", "Light", "Heavy", "Round", "Quiet", "Swift", "Warm"];
const THINGS = ["T-Shirt", "Hoodie", "Mug", "Notebook", "Backpack", "Lamp", "Chair", "Keyboard", "Bottle", "Sneaker"];
const FORMS = [["Standard"], ["S", "M", "L"], ["Black", "White"], ["Small", "Large"]];

const pick = <T>(list: readonly T[], index: number): T => list[index % list.length] as T;

/** Any number that all replicas agree on: the advisory lock under which one of them loads the demo shop. */
const DEMO_LOCK = 7_304_014;

/** Whether nobody has registered and nothing is for sale. */
async function isEmpty(em: EntityManager): Promise<boolean> {
  const [row] = await em.execute<{ empty: boolean }[]>(
    "select not exists (select 1 from product) and not exists (select 1 from shop_user) as empty",
  );
  return row?.empty === true;
}

/** Loads the demo shop into a database that is empty: once, whoever else does so at the same time, and whole or not at all. */
export async function loadDemo(orm: MikroORM): Promise<void> {
  await orm.em.fork().transactional(async (em) => {
    await em.execute("select pg_advisory_xact_lock(?)", [DEMO_LOCK]);
    if (await isEmpty(em)) await load(demoSize, (statement, rows) => em.execute(statement, rows));
  });
}

/** Adds a shop of that size to what is there. Each chunk is a transaction of its own; progress may end it by throwing. */
export async function loadShop(orm: MikroORM, size: ShopSize, progress: Progress): Promise<void> {
  await load(size, (statement, rows) => orm.em.fork().transactional((em) => em.execute(statement, rows)), progress);
}

type Insert = (statement: string, parameters: [string]) => Promise<unknown>;

async function load(size: ShopSize, insert: Insert, progress: Progress = () => {}): Promise<void> {
  const total = size.products + size.users + size.coupons;
  let done = 0;
  const insertAll = async (count: number, statement: string, rowOf: (index: number) => object) => {
    for (let start = 0; start < count; start += CHUNK) {
      const length = Math.min(CHUNK, count - start);
      const rows = Array.from({ length }, (_, offset) => rowOf(start + offset));
      await insert(statement, [JSON.stringify(rows)]);
      done += length;
      progress(done, total);
    }
  };
  await insertAll(size.products, INSERT_PRODUCTS, productRow);
  await insertAll(size.users, INSERT_USERS, userRow);
  await insertAll(size.coupons, INSERT_COUPONS, couponRow);
}

function productRow(index: number): object {
  const name = `${pick(QUALITIES, index)} ${pick(THINGS, Math.floor(index / QUALITIES.length))}`;
  const set = Math.floor(index / (QUALITIES.length * THINGS.length));
  return {
    id: randomUUIDv7(),
    name: set === 0 ? name : `${name} No. ${set + 1}`,
    variants: pick(FORMS, index).map((form, position) => ({
      id: randomUUIDv7(),
      position: position + 1,
      name: form,
      price: 1_000 * (1 + (index % 50)) + 500 * position,
      stock: 1_000,
    })),
  };
}

function userRow(index: number): object {
  return { id: randomUUIDv7(), name: `Buyer ${index + 1}`, balance: 1_000_000 };
}

function couponRow(index: number): object {
  const kinds = [
    { name: "3,000 off", amount: 3_000, percent: null, cap: null, least: 10_000, quantity: 1_000 },
    { name: "10% off, up to 5,000", amount: null, percent: 10, cap: 5_000, least: 0, quantity: 100 },
    { name: "Half price for the first twenty", amount: null, percent: 50, cap: null, least: 0, quantity: 20 },
  ];
  return { id: randomUUIDv7(), ...pick(kinds, index) };
}

const INSERT_PRODUCTS = `
  with input as (select * from jsonb_to_recordset(?::jsonb) as r (id uuid, name text, variants jsonb)),
  products as (
    insert into product (id, name, description, create_time, update_time, revision)
    select id, name, name || ', to try the shop with', now(), now(), 1 from input
  )
  insert into variant (id, product_id, position, product_name, name, price, stock, supplied)
  select v.id, p.id, v.position, p.name, v.name, v.price, v.stock, v.stock
    from input p, jsonb_to_recordset(p.variants) as v (id uuid, position int, name text, price bigint, stock int)`;

/** The money comes with a ledger entry, so that the sum of the ledger is the balance here too. */
const INSERT_USERS = `
  with input as (select * from jsonb_to_recordset(?::jsonb) as r (id uuid, name text, balance bigint)),
  users as (insert into shop_user (id, name, create_time) select id, name, now() from input),
  wallets as (insert into wallet (user_id, balance, entries) select id, balance, 1 from input)
  insert into ledger_entry (user_id, seq, kind, amount, balance_after, reference, create_time)
  select id, 1, 'CHARGE', balance, balance, 'opening balance', now() from input`;

const INSERT_COUPONS = `
  insert into coupon (id, name, discount_amount, discount_percent, max_discount, min_order_amount, valid_from,
                      valid_until, total_quantity, issued, per_user_limit, create_time)
  select id, name, amount, percent, cap, least, now(), now() + interval '1 year', quantity, 0, 1, now()
    from jsonb_to_recordset(?::jsonb)
      as r (id uuid, name text, amount bigint, percent int, cap bigint, least bigint, quantity int)`;
