/**
 * The smallest service on an embedded Postgres, for tests that stop or kill one.
 *
 *     node embedded-service.ts <embedded.ts> <data directory>
 *
 * It prints `ready <url>` and has a request running, which ends with a write after the notification `go`. At SIGINT it
 * says `stopping`, waits for the request, and stops its Postgres.
 */
import { once } from "node:events";
import { Client } from "pg";
import { pino } from "pino";

const [module = "", dataDir = ""] = process.argv.slice(2);
const { startEmbeddedPostgres }: typeof import("../../src/db/embedded.ts") = await import(module);

try {
  const interrupted = once(process, "SIGINT");
  const postgres = await startEmbeddedPostgres({ dataDir, log: pino({ level: "info" }, pino.destination(2)) });
  const client = new Client({ connectionString: postgres.url });
  client.on("error", (error) => {
    console.error(error.message);
    process.exit(1);
  });
  await client.connect();
  await client.query("listen go");
  const request = once(client, "notification").then(() => client.query("create table written ()"));
  console.log(`ready ${postgres.url}`);
  await interrupted;
  console.log("stopping");
  await request;
  console.log("the request is done");
  await client.end();
  await postgres.stop();
} catch (error) {
  console.error((error as Error).message);
  process.exit(1);
}
