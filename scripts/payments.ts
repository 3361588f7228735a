/**
 * Shows what the payment gateway has not settled yet, and notes a refund that was made in another way.
 *
 *     npm run payments -- list
 *     npm run payments -- settle-refund ID REFERENCE
 */
import { parseArgs } from "node:util";
import type { MikroORM } from "@mikro-orm/postgresql";
import { Database } from "../src/db/database.ts";
import { listUnsettled, settleRefund } from "../src/payment/unsettled.ts";
import { command, withDatabase } from "./database.ts";

const USAGE = "use `npm run payments -- list` or `npm run payments -- settle-refund ID REFERENCE`";
const UUID = /^[\da-f]{8}(-[\da-f]{4}){3}-[\da-f]{12}$/i;
/** The most that are shown. */
const SHOWN = 100;

async function list(orm: MikroORM): Promise<void> {
  const unsettled = await listUnsettled(orm.em.fork(), SHOWN);
  for (const { kind, id, orderId, amount, tries, createTime } of unsettled) {
    console.log(
      `${kind.padEnd(7)}  ${id}  order ${orderId}  ${amount}, ${tries} tries since ${createTime.toISOString()}`,
    );
  }
  if (unsettled.length === 0) console.log("nothing waits for the payment gateway");
}

async function settle(orm: MikroORM, id: string, reference: string): Promise<void> {
  if (!(await settleRefund(await Database.open(orm), id, reference))) throw new Error(`no refund ${id} is on its way`);
  console.log(`the refund ${id} is settled`);
}

async function main(): Promise<void> {
  const { positionals } = parseArgs({ allowPositionals: true });
  const [verb, id = "", reference = "", ...more] = positionals;
  if (verb === "list" && positionals.length === 1) return withDatabase(list);
  if (verb !== "settle-refund" || !UUID.test(id) || reference === "" || more.length > 0) throw new Error(USAGE);
  return withDatabase((orm) => settle(orm, id.toLowerCase(), reference));
}

await command(main);
