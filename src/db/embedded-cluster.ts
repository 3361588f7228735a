/** Where the embedded database keeps its files, and how they come to be. */
import { spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import {
  chmodSync,
  chownSync,
  existsSync,
  linkSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { text } from "node:stream/consumers";
import type { Logger } from "pino";
import { type Binaries, canEnter, type Owner, POSTGRES_ENV, SYSTEM_DIR } from "./embedded-binaries.ts";

const CLUSTER = "postgres";
const PASSWORD = "postgres-password";
const LOCATION = "postgres-location.txt";
/** An initialisation that was killed leaves a directory of this name, which never becomes the cluster. */
const UNFINISHED = "postgres.init-";

/** The directory that holds the cluster, the lock, and nothing else of importance. */
export type Home = {
  /** DATA_DIR, or a directory elsewhere when the user `postgres` can't get into DATA_DIR. */
  directory: string;
  dataDir: string;
};

export function clusterOf(home: Home): string {
  return join(home.directory, CLUSTER);
}

function readLocation(dataDir: string): string | undefined {
  const file = join(dataDir, LOCATION);
  if (!existsSync(file)) return undefined;
  const line = readFileSync(file, "utf8")
    .split("\n")
    .find((candidate) => candidate.startsWith(`${SYSTEM_DIR}/`) && !candidate.includes(".."));
  if (line === undefined) throw new Error(`${file} does not say where the database is: restore it, or remove DATA_DIR`);
  return line;
}

/**
 * Writes down a new place for the database of DATA_DIR, and returns the one that holds: of several starts at once, the
 * first one's. The name says nothing of DATA_DIR, which may be moved, and another be made in its place.
 */
function chooseLocation(dataDir: string): string {
  const file = join(dataDir, LOCATION);
  const made = `${file}.${process.pid}.new`;
  const why = "The user postgres can't get into this directory, so its database is in";
  const directory = join(SYSTEM_DIR, randomBytes(8).toString("hex"));
  writeFileSync(made, `${why}\n${directory}\n`);
  try {
    // A link appears whole or not at all, and never over another file.
    linkSync(made, file);
    return directory;
  } catch (error) {
    const chosen = (error as NodeJS.ErrnoException).code === "EEXIST" && readLocation(dataDir);
    if (!chosen) throw error;
    return chosen;
  } finally {
    rmSync(made, { force: true });
  }
}

/**
 * Finds where the cluster of DATA_DIR is or shall be.
 *
 * @throws Error when a cluster is there, but out of reach
 */
export function findHome(dataDir: string, owner: Owner): Home {
  const known = readLocation(dataDir);
  if (known) {
    mkdirSync(known, { recursive: true, mode: 0o755 });
    return { directory: known, dataDir };
  }
  if (owner === undefined || canEnter(owner, dataDir)) return { directory: dataDir, dataDir };
  if (existsSync(join(dataDir, CLUSTER))) {
    throw new Error(
      `DATA_DIR ${dataDir} holds a database, but the system user postgres can't get into it: check its modes`,
    );
  }
  const directory = chooseLocation(dataDir);
  mkdirSync(directory, { recursive: true, mode: 0o755 });
  chmodSync(SYSTEM_DIR, 0o755);
  chmodSync(directory, 0o755);
  return { directory, dataDir };
}

/** Runs initdb, which alone gets to see the password: in a file that nobody else can read. */
async function initdb(binaries: Binaries, owner: Owner, home: Home, target: string, password: string): Promise<void> {
  const passwordFile = join(home.directory, "postgres.init-password");
  rmSync(passwordFile, { force: true });
  writeFileSync(passwordFile, password, { mode: 0o600, flag: "wx" });
  if (owner) chownSync(passwordFile, owner.uid, owner.gid);
  mkdirSync(target, { mode: 0o700 });
  if (owner) chownSync(target, owner.uid, owner.gid);
  const args = [
    `--pgdata=${target}`,
    `--pwfile=${passwordFile}`,
    "--username=postgres",
    "--auth=scram-sha-256",
    "--encoding=UTF8",
    // The same order and upper case on every machine, whatever locales it has.
    "--locale=C",
    "--locale-provider=builtin",
    "--builtin-locale=C.UTF-8",
    "--data-checksums",
  ];
  try {
    const child = spawn(binaries.initdb, args, {
      ...owner,
      cwd: "/",
      env: POSTGRES_ENV,
      stdio: ["ignore", "ignore", "pipe"],
      detached: true,
    });
    const onExit = () => void child.kill("SIGKILL");
    process.prependListener("exit", onExit);
    const [output, [code]] = await Promise.all([text(child.stderr), once(child, "exit")]);
    process.off("exit", onExit);
    if (code !== 0) throw new Error(`initdb failed: ${output.trim().split("\n").at(-1)}`);
  } finally {
    rmSync(passwordFile, { force: true });
  }
}

/** An initdb that outlived its killed service may still be writing there. Then what is left stays until the next start. */
function removeUnfinished(directory: string): void {
  try {
    rmSync(directory, { recursive: true, force: true });
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ENOTEMPTY") throw error;
  }
}

/**
 * Makes the cluster unless it is there. Call it with the lock held. The cluster gets its name last, so a start that was
 * killed half-way leaves nothing that looks like a database.
 *
 * @returns the password of the user `postgres`
 */
export async function ensureCluster(binaries: Binaries, owner: Owner, home: Home, log: Logger): Promise<string> {
  const passwordFile = join(home.dataDir, PASSWORD);
  const cluster = clusterOf(home);
  for (const name of readdirSync(home.directory)) {
    if (name.startsWith(UNFINISHED)) removeUnfinished(join(home.directory, name));
  }
  if (existsSync(cluster)) {
    if (existsSync(passwordFile)) return readFileSync(passwordFile, "utf8").trim();
    throw new Error(`${passwordFile} is gone, and the database closed without it: restore it, or remove DATA_DIR`);
  }
  log.info({ cluster }, "making a new database");
  const password = randomBytes(24).toString("base64url");
  const unfinished = join(home.directory, `${UNFINISHED}${randomBytes(6).toString("hex")}`);
  await initdb(binaries, owner, home, unfinished, password);
  rmSync(passwordFile, { force: true });
  writeFileSync(passwordFile, `${password}\n`, { mode: 0o600, flag: "wx" });
  renameSync(unfinished, cluster);
  return password;
}
