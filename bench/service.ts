/** The service under test: the real process, on the Postgres of this run. */
import type { ChildProcess } from "node:child_process";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import type { Readable } from "node:stream";
import { start } from "./process.ts";

const ROOT = join(import.meta.dirname, "..");
const TAIL = 2_000;

export type Service = { child: ChildProcess; port: number };

/** What `npm start` gives to Node. */
function startArguments(): string[] {
  const { scripts } = JSON.parse(readFileSync(join(ROOT, "package.json"), "utf8")) as { scripts: { start: string } };
  const [, ...rest] = scripts.start.split(" ");
  return rest;
}

/** Starts it as `npm start` does, with the settings that it has by default, but for those that the baselines would not pay for. @throws Error with what it said when it does not start */
export async function startService(options: { url: string; secret: string; dataDir: string }): Promise<Service> {
  const { url, secret, dataDir } = options;
  const folder = process.env.CPU_PROFILE;
  const profile = folder ? ["--cpu-prof", `--cpu-prof-dir=${folder}`] : [];
  const child = start(process.execPath, [...profile, ...startArguments()], {
    cwd: ROOT,
    stdio: ["ignore", "pipe", "pipe"],
    env: {
      PATH: process.env.PATH,
      DATABASE_URL: url,
      DATA_DIR: dataDir,
      GRPC_PORT: "0",
      HTTP_PORT: "0",
      LOG_LEVEL: "warn",
      JWT_SECRET: secret,
      // No order expires in the middle of a measurement, and nobody delivers the events, which all of them write.
      ORDER_TTL: "1d",
      EVENT_SINK_URL: "off",
    },
  });
  let said = "";
  const { promise, resolve, reject } = Promise.withResolvers<number>();
  const listen = (stream: Readable | null) =>
    stream?.setEncoding("utf8").on("data", (chunk: string) => {
      said = (said + chunk).slice(-TAIL);
      const port = /gRPC\b[^\n]*?:(\d+)\n/.exec(said)?.[1];
      if (port) resolve(Number(port));
    });
  listen(child.stdout);
  listen(child.stderr);
  // What it warns of belongs to the result.
  child.stderr?.on("data", (chunk: string) => process.stderr.write(chunk));
  child.once("exit", (code, signal) => reject(new Error(`the service ended (${signal ?? code}): ${said.trim()}`)));
  return { child, port: await promise };
}
