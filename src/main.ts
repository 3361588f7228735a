/** The service as a process: environment -> start -> graceful stop. */
import { pino } from "pino";
import { start } from "./app.ts";
import { readConfig } from "./config.ts";

/** One Ctrl-C in a terminal arrives twice, because npm passes it on. A second one within this time, in ms, is the same. */
const SAME_PRESS = 1_000;

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
