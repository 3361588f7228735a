import { expect, test } from "vitest";
import { entities } from "../src/app.ts";
import { createOrm } from "../src/db/orm.ts";
import { createDatabase } from "./support/database.ts";

test("the migrations make the schema that the entities describe", async () => {
  const orm = await createOrm({ url: await createDatabase(), poolSize: 1, entities });
  // On a difference: make a migration with `npm run migration`.
  expect(await orm.schema.getUpdateSchemaSQL()).toBe("");
  await orm.close();
});
