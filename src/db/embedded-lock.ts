/**
 * One service per data directory. The lock is a file that names its holder by pid and start time, so that neither a
 * kill -9 nor another program that got the same pid later keeps the next start out.
 */
import { execFileSync } from "node:child_process";
import { linkSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";

export type Lock = { release(): void };

/** Each round either ends or has removed a lock that nobody held. */
const MAX_ROUNDS = 5;

function ps(pid: number, column: string): string | undefined {
  try {
    const stdio: ["ignore", "pipe", "ignore"] = ["ignore", "pipe", "ignore"];
    return execFileSync("ps", ["-o", `${column}=`, "-p", `${pid}`], { encoding: "utf8", stdio }).trim();
  } catch {
    return undefined;
  }
}

function readIfThere(path: string): string | undefined {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return undefined;
  }
}

/** The command line of a process, its arguments separated by spaces; undefined when there is no such process. */
export function commandOf(pid: number): string | undefined {
  if (process.platform !== "linux") return ps(pid, "command");
  return readIfThere(`/proc/${pid}/cmdline`)?.replaceAll("\0", " ");
}

/** When a process started, in a form that no other process has had since. */
function startOf(pid: number): string | undefined {
  if (process.platform !== "linux") return ps(pid, "lstart");
  const stat = readIfThere(`/proc/${pid}/stat`);
  // The 22nd field; the second one, the name of the program, may hold spaces and parentheses.
  const ticks = stat?.slice(stat.lastIndexOf(")") + 2).split(" ")[19];
  return ticks && `${readIfThere("/proc/sys/kernel/random/boot_id")?.trim()} ${ticks}`;
}

function holderOf(lock: string): number | undefined {
  const [pid = "", start] = lock.split("\n");
  return start && start === startOf(Number(pid)) ? Number(pid) : undefined;
}

/** Removes a lock that nobody holds, unless somebody has taken it since it was read. */
function removeStale(path: string, stale: string): void {
  const aside = `${path}.${process.pid}.stale`;
  try {
    renameSync(path, aside);
    if (readIfThere(aside) !== stale) linkSync(aside, path);
  } catch {
    // Another start was faster; the next round sees what it left.
  }
  rmSync(aside, { force: true });
}

/** A live process holds the lock. */
export class LockHeld extends Error {
  override readonly name = "LockHeld";
}

/**
 * Takes the lock of this process at `path`.
 *
 * @throws LockHeld when a live process holds it; the message names that process
 */
export function acquireLock(path: string, what: string): Lock {
  const mine = `${process.pid}\n${startOf(process.pid)}\n`;
  const made = `${path}.${process.pid}.new`;
  writeFileSync(made, mine, { mode: 0o600 });
  try {
    for (let round = 0; round < MAX_ROUNDS; round += 1) {
      try {
        // A link appears whole or not at all, and never over another file.
        linkSync(made, path);
        return { release: () => readIfThere(path) === mine && rmSync(path, { force: true }) };
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== "EEXIST") throw error;
      }
      const found = readIfThere(path) ?? "";
      const holder = holderOf(found);
      if (holder !== undefined) throw new LockHeld(`${what} is in use by process ${holder}`);
      removeStale(path, found);
    }
  } finally {
    rmSync(made, { force: true });
  }
  throw new Error(`${what} is being taken by other processes`);
}
