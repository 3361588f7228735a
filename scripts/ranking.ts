/**
 * Counts the ranking anew from the events, while the service runs or not.
 *
 *     npm run ranking -- rebuild
 */
import { parseArgs } from "node:util";
import { Database } from "../src/db/database.ts";
import { rebuildRanking } from "../src/ranking/rebuild.ts";
import { command, withDatabase } from "./database.ts";
import { drawProgress } from "./progress.ts";

/** Statements about all events that there are take their time. In milliseconds. */
const limits = { lockMs: 60_000, idleMs: 30_000, silenceMs: 60 * 60_000 };

await command(async () => {
  const { positionals } = parseArgs({ allowPositionals: true });
  if (positionals.join(" ") !== "rebuild") throw new Error("use `npm run ranking -- rebuild`");
  await withDatabase(async (orm) => rebuildRanking(await Database.open(orm, { limits }), drawProgress));
  console.log("\nthe ranking is counted anew");
});
