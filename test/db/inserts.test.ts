/** New rows of several tables, in one statement or in one for each. */
import { randomUUIDv7 } from "node:crypto";
import { expect, test } from "vitest";
import { LedgerEntry, Wallet } from "../../src/balance/balance.entity.ts";
import { Cart, CartItem } from "../../src/cart/cart.entity.ts";
import type { Database } from "../../src/db/database.ts";
import { createDatabase } from "../support/database.ts";
import { connect, open } from "./harness.ts";

const url = await createDatabase();
/** More than rows have to be new together before they get a statement of their own. */
const TIMES = 25;

function addRows(db: Database): Promise<string> {
  const userId = randomUUIDv7();
  const item = Object.assign(new CartItem(), { userId, variantId: userId, quantity: 1, position: 1n });
  const entry = { userId, seq: 1n, kind: "CHARGE" as const, amount: 1n, balanceAfter: 1n, reference: "" };
  const rows = [
    Cart.open(userId),
    item,
    Wallet.open(userId),
    Object.assign(new LedgerEntry(), entry, { createTime: new Date() }),
  ];
  return db.apply({
    touches: [],
    decide: (tx) => {
      for (const row of rows) tx.add(row);
      return userId;
    },
  });
}

test("take their keys in the same order either way: two processes that do it differently never wait in a circle", async () => {
  const { db } = await open(url);
  const client = await connect(url);
  await client.query(`
    create table took (id serial, user_id uuid, name text);
    create function note() returns trigger language plpgsql as
      $$ begin insert into took (user_id, name) values (new.user_id, tg_table_name); return new; end $$;
    create trigger note before insert on cart for each row execute function note();
    create trigger note before insert on cart_item for each row execute function note();
    create trigger note before insert on wallet for each row execute function note();
    create trigger note before insert on ledger_entry for each row execute function note()`);
  const userIds: string[] = [];
  for (let time = 0; time < TIMES; time += 1) userIds.push(await addRows(db));
  const { rows: orders } = await client.query<{ names: string }>(
    "select string_agg(name, ' ' order by id) as names from took group by user_id",
  );
  expect(orders).toHaveLength(TIMES);
  expect(new Set(orders.map(({ names }) => names)).size).toBe(1);
  // What one statement has written has one command id.
  const { rows: statements } = await client.query<{ together: boolean }>(
    `select (c.cmin = i.cmin and i.cmin = w.cmin) as together
       from cart c join cart_item i using (user_id) join wallet w using (user_id) order by array_position($1, c.user_id)`,
    [userIds],
  );
  expect([statements[0], statements.at(-1)]).toEqual([{ together: false }, { together: true }]);
});
