/**
 * Shows the events that the sink has not taken, and has those sent again that were given up; makes those of a dump that was
 * restored into another cluster its own.
 *
 *     npm run events -- list
 *     npm run events -- replay --all
 *     npm run events -- replay ID [ID ...]
 *     npm run events -- rebase
 */
import { parseArgs } from "node:util";
import type { MikroORM } from "@mikro-orm/postgresql";
import { rebaseEvents } from "../src/outbox/rebase.ts";
import { listUndelivered, replay } from "../src/outbox/undelivered.ts";
import { command, withDatabase } from "./database.ts";

const USAGE = "use `npm run events -- list`, `... replay --all`, `... replay ID [ID ...]` or `... rebase`";
/** The most that are shown. */
const SHOWN = 100;

async function list(orm: MikroORM): Promise<void> {
  const { events, total } = await listUndelivered(orm.em.fork(), SHOWN);
  for (const { id, type, aggregateid, attempts, dead, retryTime, lastError } of events) {
    const what = dead ? "given up" : attempts > 0 ? `again ${retryTime.toISOString()}` : "behind another one";
    console.log(`${id}  ${type.padEnd(18)} ${aggregateid}  ${attempts} attempts, ${what}  ${lastError}`);
  }
  if (total > events.length) console.log(`... and ${total - events.length} more`);
  if (total === 0) console.log("every event was delivered, or is on its way");
}

async function rebase(orm: MikroORM): Promise<void> {
  const count = await rebaseEvents(orm.em.fork());
  console.log(count === undefined ? "the events are this cluster's own" : `${count} events are this cluster's own now`);
}

async function resend(orm: MikroORM, ids: readonly string[] | undefined): Promise<void> {
  const count = await replay(orm.em.fork(), ids);
  console.log(`${count} ${count === 1 ? "event is" : "events are"} sent again`);
}

async function main(): Promise<void> {
  const { values, positionals } = parseArgs({ allowPositionals: true, options: { all: { type: "boolean" } } });
  const [command, ...ids] = positionals;
  const all = values.all === true;
  if (command === "replay" && all !== ids.length > 0) {
    await withDatabase((orm) => resend(orm, all ? undefined : ids));
  } else if ((command === "list" || command === "rebase") && ids.length === 0 && !all) {
    await withDatabase(command === "list" ? list : rebase);
  } else throw new Error(USAGE);
}

await command(main);
