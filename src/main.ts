/** The service as a process: environment -> start -> graceful stop. */
import { pino } from "pino";
import { start } from "./app.ts";
import { readConfig } from "./config.ts";

/** One Ctrl-C in a terminal arrives twice, because npm passes it on. A second one within this time, in ms, is the same. */
const SAME_PRESS = 1_000;

/**
 * Log lines go out in blocks of this many bytes, or after `periodicFlush` ms: a write for each call would cost a tenth of
 * the CPU. A fatal line goes out at once, and with it all before it.
 */
const logFile = pino.destination({ dest: 2, sync: false, minLength: 8_192, periodicFlush: 100 });

/** Resolves when no write of the log is under way: the exit would cut it off. What is left then, pino writes at the exit. */
function logSettled(): Promise<void> {
  return new Promise((resolve) => logFile.flush(() => resolve()));
}

/** Resolves at the first signal to stop. The second one ends the process at once. */
function stopSignal(): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>();
  let first: number | undefined;
  const onSignal = () => {
    const now = performance.now();
    first ??= now;
    if (now - first > SAME_PRESS) process.exit(1);
    resolve();
  };
  for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"]) process.on(signal, onSignal);
  return promise;
}

/** Runs the service until it is told to stop, or can't go on. Returns the exit code. */
async function run(): Promise<number> {
  const stopped = stopSignal();
  const config = readConfig(process.env);
  const log = pino({ level: config.logLevel }, logFile);
  const app = await start(config, log);
  console.log(app.banner);
  const failure = await Promise.race([stopped, app.failed]);
  if (failure) log.fatal({ err: failure }, "the service can't go on");
  else log.info("stopping");
  await app.stop();
  log.info("stopped");
  return failure ? 1 : 0;
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
