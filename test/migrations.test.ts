import { randomUUID } from "node:crypto";
import { expect, test } from "vitest";
import { entities } from "../src/app.ts";
import { createOrm } from "../src/db/orm.ts";
import { connect } from "./db/harness.ts";
import { createDatabase } from "./support/database.ts";
import { addOrders } from "./support/history.ts";

test("the migrations make the schema that the entities describe", async () => {
  const orm = await createOrm({ url: await createDatabase(), poolSize: 1, entities });
  // On a difference: make a migration with `npm run migration`.
  expect(await orm.schema.getUpdateSchemaSQL()).toBe("");
  await orm.close();
});

test("refunds that the gateway was asked for before they had a table go on, under the keys that it knows", async () => {
  const orm = await createOrm({ url: await createDatabase(), poolSize: 2, entities });
  const em = orm.em.fork();
  await orm.migrator.down({ to: "Migration20261127170500_order_lines" });
  const ids = Object.fromEntries(
    ["PENDING", "COMPLETED", "REFUNDING", "REFUNDED"].map((state) => [state, randomUUID()]),
  );
  for (const [state, id] of Object.entries(ids)) {
    await em.execute(
      `insert into payment (order_id, id, user_id, method, state, amount, refunded_amount, events, next_try_time,
                            create_time, update_time)
       values (?, ?, ?, 'EXTERNAL', ?, 700, ?, 1, ?, now(), now())`,
      [randomUUID(), id, randomUUID(), state, state === "REFUNDED" ? 700 : 0, /ING$/.test(state) ? new Date() : null],
    );
  }
  await orm.migrator.up();
  const rows = await em.execute(
    `select p.state, p.refunding_amount::int as refunding, p.next_try_time is not null as asked, r.id = p.id as known,
            r.amount::int, r.state as refund, r.next_try_time is not null as due
       from payment p left join gateway_refund r on r.payment_id = p.id and r.order_id = p.order_id order by p.state`,
  );
  const none = { known: null, amount: null, refund: null, due: false };
  expect(rows).toEqual([
    { state: "COMPLETED", refunding: 0, asked: false, ...none },
    { state: "PENDING", refunding: 0, asked: true, ...none },
    { state: "REFUNDED", refunding: 0, asked: false, known: true, amount: 700, refund: "COMPLETED", due: false },
    { state: "REFUNDING", refunding: 700, asked: false, known: true, amount: 700, refund: "PENDING", due: true },
  ]);
  await orm.close();
});

test("what was supplied is found out from what is left and what was sold", async () => {
  const url = await createDatabase();
  const client = await connect(url);
  await addOrders(client, 100);
  const read = async () => (await client.query("select id, stock, supplied from variant order by id")).rows;
  const before = await read();
  expect(before.some(({ stock, supplied }) => stock !== Number(supplied))).toBe(true);
  const orm = await createOrm({ url, poolSize: 2, entities });
  const migrations = ["Migration20261129180000_supplied"];
  await orm.migrator.down({ migrations });
  await orm.migrator.up({ migrations });
  await orm.close();
  expect(await read()).toEqual(before);
});
