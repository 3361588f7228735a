/** The database of the service as it is configured, for a command: running or not. */
import { pino } from "pino";
import { entities } from "../src/app.ts";
import { readConfig } from "../src/config.ts";
import { openEmbeddedPostgres } from "../src/db/embedded.ts";
import { createOrm, isMigrated } from "../src/db/orm.ts";

type Orm = Awaited<ReturnType<typeof createOrm>>;

/** Runs `work` on it as it is. @throws Error when its schema is not the one of this version: the service brings it there */
export async function withDatabase<T>(work: (orm: Orm) => Promise<T>): Promise<T> {
  const config = readConfig(process.env);
  const log = pino({ level: "warn" }, pino.destination(2));
  const postgres = config.databaseUrl
    ? { url: config.databaseUrl, close: async () => {} }
    : await openEmbeddedPostgres({ dataDir: config.dataDir, log });
  const orm = await createOrm({ url: postgres.url, poolSize: 2, entities });
  try {
    if (!(await isMigrated(orm))) {
      throw new Error("the schema of the database is not up to date: start the service, which migrates it");
    }
    return await work(orm);
  } finally {
    await orm.close();
    await postgres.close();
  }
}

/** Runs a command to its end; what goes wrong is one line and that exit code. */
export async function command(main: () => Promise<void>, exitCode = 1): Promise<void> {
  try {
    await main();
  } catch (error) {
    console.error((error as Error).message.split("\n", 1)[0]);
    process.exitCode = exitCode;
  }
}
