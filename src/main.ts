/** The service as a process: environment -> start -> graceful stop. */
import { pino } from "pino";
import { start } from "./app.ts";
import { readConfig } from "./config.ts";
import { stopSignal } from "./stop-signal.ts";

/** Runs the service until it is told to stop, or can't go on. Returns the exit code: 0 when all of it stopped in time. */
async function run(): Promise<number> {
  const stopped = stopSignal();
  const config = readConfig(process.env);
  const log = pino({ level: config.logLevel }, pino.destination({ dest: 2, sync: false }));
  const app = await start(config, log);
  console.log(app.banner);
  const failure = await Promise.race([stopped, app.failed]);
  if (failure) log.fatal({ err: failure }, "the service can't go on");
  else log.info("stopping");
  const clean = await app.stop();
  log.info("stopped");
  return failure || !clean ? 1 : 0;
}

try {
  process.exit(await run());
} catch (error) {
  const message = error instanceof Error ? error.message : String(error);
  process.stderr.write(`doorbuster: ${message.split("\n")[0]}\n`);
  process.exit(1);
}
