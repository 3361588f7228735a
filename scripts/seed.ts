/**
 * Adds a shop of any size to the database of the service, running or not.
 *
 *     npm run seed -- --products 100000 --users 100000
 */
import { parseArgs } from "node:util";
import { pino } from "pino";
import { entities } from "../src/app.ts";
import { readConfig } from "../src/config.ts";
import { openEmbeddedPostgres } from "../src/db/embedded.ts";
import { createOrm, migrate } from "../src/db/orm.ts";
import { demoSize, loadShop } from "../src/demo.ts";
import { stopSignal } from "../src/stop-signal.ts";
import { drawProgress } from "./progress.ts";

function count(name: string, text: string | undefined, fallback: number): number {
  const value = text === undefined ? fallback : Number(text);
  if (!Number.isSafeInteger(value) || value < 0) throw new Error(`--${name} must be a whole number from 0`);
  return value;
}

async function main(): Promise<void> {
  const stopping = new AbortController();
  // Looked at between steps, each of which is short: what was started by then is stopped in order.
  void stopSignal().then(() => stopping.abort(new Error("stopped; what was loaded by then stays")));
  const { values } = parseArgs({
    options: { products: { type: "string" }, users: { type: "string" }, coupons: { type: "string" } },
  });
  const size = {
    products: count("products", values.products, demoSize.products),
    users: count("users", values.users, demoSize.users),
    coupons: count("coupons", values.coupons, 0),
  };
  const config = readConfig(process.env);
  const log = pino({ level: "warn" }, pino.destination(2));
  const postgres = config.databaseUrl
    ? { url: config.databaseUrl, close: async () => {} }
    : await openEmbeddedPostgres({ dataDir: config.dataDir, log });
  const orm = await createOrm({ url: postgres.url, poolSize: 2, entities });
  try {
    stopping.signal.throwIfAborted();
    await migrate(orm);
    const start = performance.now();
    await loadShop(orm, size, (done, total) => {
      drawProgress(done, total);
      stopping.signal.throwIfAborted();
    });
    const seconds = ((performance.now() - start) / 1000).toFixed(1);
    console.log(`\n${size.products} products, ${size.users} users, ${size.coupons} coupons in ${seconds} s`);
  } finally {
    await orm.close();
    await postgres.close();
  }
}

try {
  await main();
} catch (error) {
  console.error(`seed: ${(error as Error).message.split("\n", 1)[0]}`);
  process.exitCode = 1;
}
