import { randomBytes } from "node:crypto";
import { linkSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";

/** HS256 is as strong as its key: RFC 7518 asks for the size of the hash. */
const MIN_BYTES = 32;

function checked(secret: string, name: string): Uint8Array {
  const bytes = Buffer.from(secret);
  if (bytes.length < MIN_BYTES) {
    throw new Error(`${name} is too short: it has ${bytes.length} bytes, at least ${MIN_BYTES} are needed`);
  }
  return bytes;
}

function errorCode(error: unknown): unknown {
  return (error as NodeJS.ErrnoException).code;
}

/** Puts a new secret where the others will find it whole: a process that starts at the same moment may win, which is fine. */
function make(path: string): void {
  const draft = `${path}.${process.pid}`;
  writeFileSync(draft, `${randomBytes(MIN_BYTES).toString("base64url")}\n`, { mode: 0o600 });
  try {
    linkSync(draft, path);
  } catch (error) {
    if (errorCode(error) !== "EEXIST") throw error;
  } finally {
    rmSync(draft);
  }
}

/**
 * The key that tokens are signed and verified with: the given secret, else the content of `jwt-secret` in the data
 * directory, which is made (mode 0600) when missing.
 * @throws Error with one clear line when it is shorter than 32 bytes or the file can't be used.
 */
export function loadSecret(options: { secret?: string | undefined; dataDir: string }): Uint8Array {
  if (options.secret !== undefined) return checked(options.secret, "JWT_SECRET");
  const path = join(options.dataDir, "jwt-secret");
  try {
    return checked(readFileSync(path, "utf8").trim(), path);
  } catch (error) {
    if (errorCode(error) !== "ENOENT") throw error;
  }
  mkdirSync(options.dataDir, { recursive: true });
  make(path);
  return checked(readFileSync(path, "utf8").trim(), path);
}
