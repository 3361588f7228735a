/**
 * Shows the events that the sink has not taken, and has those sent again that were given up.
 *
 *     npm run events -- list
 *     npm run events -- replay --all
 *     npm run events -- replay ID [ID ...]
 */
import { parseArgs } from "node:util";
import type { MikroORM } from "@mikro-orm/postgresql";
import { listUndelivered, replay } from "../src/outbox/undelivered.ts";
import { command, withDatabase } from "./database.ts";

const USAGE =
  "use `npm run events -- list`, `npm run events -- replay --all` or `npm run events -- replay ID [ID ...]`";
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

async function main(): Promise<void> {
  const { values, positionals } = parseArgs({ allowPositionals: true, options: { all: { type: "boolean" } } });
  const [command, ...ids] = positionals;
  const all = values.all === true;
  const replays = command === "replay" && all !== ids.length > 0;
  if (!replays && !(command === "list" && ids.length === 0 && !all)) throw new Error(USAGE);
  await withDatabase(async (orm) => {
    if (!replays) return list(orm);
    const count = await replay(orm.em.fork(), all ? undefined : ids);
    console.log(`${count} ${count === 1 ? "event is" : "events are"} sent again`);
  });
}

await command(main);
