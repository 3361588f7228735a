/** The processes of a run: none outlives it, and what they cost is measured. */
import { type ChildProcess, fork, type SpawnOptions, spawn } from "node:child_process";
import { once } from "node:events";
import { readFileSync } from "node:fs";

/** How long a process may take to stop by itself, in milliseconds. */
const STOP_TIMEOUT = 15_000;
/** Kernels count processor time in hundredths of a second. */
const TICK_US = 10_000;
const KB_PER_MB = 1_024;

const running = new Set<ChildProcess>();

function keep<C extends ChildProcess>(child: C): C {
  running.add(child);
  child.once("exit", () => running.delete(child));
  // A program that does not start has no "exit".
  child.once("error", () => running.delete(child));
  return child;
}

/** Starts a program that is stopped at the end of the run at the latest. */
export function start(program: string, args: readonly string[], options: SpawnOptions): ChildProcess {
  return keep(spawn(program, args, options));
}

/** What modules have said and nobody has read: two messages may arrive before the first is dealt with. */
const inboxes = new WeakMap<ChildProcess, unknown[]>();

/** Starts a module of this folder with a channel to it, which knows NaN: the quantile of nothing. */
export function startModule(path: string, args: readonly string[] = []): ChildProcess {
  const child = keep(
    fork(path, args, { serialization: "advanced", execArgv: [], stdio: ["ignore", "inherit", "inherit", "ipc"] }),
  );
  const inbox: unknown[] = [];
  inboxes.set(child, inbox);
  child.on("message", (message) => inbox.push(message));
  return child;
}

/** The next message of a module. @throws Error when the process ends instead */
export async function nextMessage<T>(child: ChildProcess, name: string): Promise<T> {
  const inbox = inboxes.get(child) ?? [];
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  const onExit = (code: number | null, signal: string | null) => reject(new Error(`${name} ended (${signal ?? code})`));
  child.on("message", resolve).on("exit", onExit);
  try {
    if (inbox.length === 0) await promise;
    return inbox.shift() as T;
  } finally {
    child.off("message", resolve).off("exit", onExit);
  }
}

/** Whether it still runs. */
export function isRunning(child: ChildProcess): boolean {
  return running.has(child);
}

/** Asks it to stop, and makes it. */
export async function stop(child: ChildProcess): Promise<void> {
  if (!running.has(child)) return;
  const gone = once(child, "exit");
  child.kill("SIGTERM");
  const timer = setTimeout(() => child.kill("SIGKILL"), STOP_TIMEOUT);
  await gone;
  clearTimeout(timer);
}

/** Stops everything that still runs. */
export async function stopAll(): Promise<void> {
  await Promise.all([...running].map(stop));
}

/** Processor time that a process has used, in microseconds; undefined where there is no /proc. */
export function cpuOf(pid: number | undefined): number | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
    // The name may hold blanks, so fields are counted from its closing bracket: utime and stime are 14 and 15.
    const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
    return (Number(fields[11]) + Number(fields[12])) * TICK_US;
  } catch {
    return undefined;
  }
}

/** Memory of a process that is resident, now or at its most so far, in MB; undefined where there is no /proc. */
export function memoryOf(pid: number | undefined, when: "now" | "peak"): number | undefined {
  try {
    const name = when === "now" ? "VmRSS" : "VmHWM";
    const status = readFileSync(`/proc/${pid}/status`, "utf8");
    const size = new RegExp(`^${name}:\\s+(\\d+) kB`, "m").exec(status)?.[1];
    return size === undefined ? undefined : Math.round(Number(size) / KB_PER_MB);
  } catch {
    return undefined;
  }
}
