/** The service as a process: environment -> start -> graceful stop. */
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { pino } from "pino";
import { start } from "./app.ts";
import { readConfig } from "./config.ts";
import { stopSignal } from "./stop-signal.ts";

/**
 * Log lines go out in blocks of this many bytes, or after `periodicFlush` ms: a write for each call would cost a tenth of
 * the CPU. A fatal line goes out at once, and with it all before it.
 */
const logFile = pino.destination({ dest: 2, sync: false, minLength: 8_192, periodicFlush: 100 });

/** Resolves when no write of the log is under way: the exit would cut it off. What is left then, pino writes at the exit. */
function logSettled(): Promise<void> {
  return new Promise((resolve) => logFile.flush(() => resolve()));
}

/** Loading the code leaves behind garbage of 50 MB, on pages that the heap would keep. */
function releaseMemory(): void {
  setFlagsFromString("--expose-gc");
  const collect = runInNewContext("gc") as NonNullable<typeof gc>;
  collect({ type: "major", execution: "sync", flavor: "last-resort" });
}

/** Runs the service until it is told to stop, or can't go on. Returns the exit code: 0 when all of it stopped in time. */
async function run(): Promise<number> {
  const stopped = stopSignal();
  const config = readConfig(process.env);
  const log = pino({ level: config.logLevel }, logFile);
  const app = await start(config, log);
  releaseMemory();
  console.log(app.banner);
  const failure = await Promise.race([stopped, app.failed]);
  if (failure) log.fatal({ err: failure }, "the service can't go on");
  else log.info("stopping");
  const clean = await app.stop();
  log.info("stopped");
  return failure || !clean ? 1 : 0;
}

let code: number;
try {
  code = await run();
  await logSettled();
} catch (error) {
  await logSettled();
  const message = error instanceof Error ? error.message : String(error);
  process.stderr.write(`doorbuster: ${message.split("\n")[0]}\n`);
  code = 1;
}
process.exit(code);
