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
