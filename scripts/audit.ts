/**
 * Checks a database against every invariant, while the service runs or not. Exit code 1 when one is broken, 2 when it can't be
 * checked.
 *
 *     npm run audit
 *     npm run -s audit -- --json
 */
import { parseArgs } from "node:util";
import { audit } from "../src/audit/audit.ts";
import { isSound, toJson, toText } from "../src/audit/report.ts";
import { poolOf } from "../src/db/orm.ts";
import { stopSignal } from "../src/stop-signal.ts";
import { command, withDatabase } from "./database.ts";
import { drawAside } from "./progress.ts";

async function main(): Promise<void> {
  const { values } = parseArgs({ options: { json: { type: "boolean" } } });
  const stopping = new AbortController();
  // Looked at between queries, so that a Postgres that was started for this is stopped in order.
  void stopSignal().then(() => stopping.abort(new Error("stopped; nothing was found out")));
  const found = await withDatabase(async (orm) => {
    const client = await (await poolOf(orm)).connect();
    try {
      return await audit(client, (done, total) => {
        stopping.signal.throwIfAborted();
        drawAside(done, total);
      });
    } finally {
      drawAside(1, 1);
      client.release();
    }
  });
  console.log(values.json ? toJson(found) : toText(found));
  if (!isSound(found.verdicts)) process.exitCode = 1;
}

await command(main, 2);
