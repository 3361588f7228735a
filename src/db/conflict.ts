import { DomainError } from "../error.ts";

/** The error itself and what it wraps, outermost first: the ORM and the driver both wrap. */
function* causes(error: unknown): Generator<{ code?: unknown; message?: unknown }> {
  let current = error;
  for (let depth = 0; depth < 5 && current instanceof Error; depth += 1) {
    yield current as { code?: unknown };
    current = current.cause ?? (current as { previous?: unknown }).previous;
  }
}

function hasCode(error: unknown, matches: (code: string) => boolean): boolean {
  for (const { code } of causes(error)) {
    if (typeof code === "string" && matches(code)) return true;
  }
  return false;
}

/** What was decided does not go together with what others are doing at the same time. */
export class Outrun extends Error {
  override readonly name = "Outrun";
  /** serialization_failure: as a transaction it can be tried again. */
  readonly code = "40001";

  constructor(message: string, cause?: unknown) {
    super(message, { cause });
  }
}

/** Whether a CHECK of the schema was broken. */
export function isBrokenCheck(error: unknown): boolean {
  return hasCode(error, (code) => code === "23514");
}

/** A unique index that somebody else filled first. */
const DUPLICATE = "23505";
/** Somebody holds a row for longer than a unit of work waits. */
const LOCK_TIMEOUT = "55P03";
/**
 * Serialization failure, deadlock, duplicate, lock timeout, and the division by zero with which an update fails whose versions were
 * old. https://www.postgresql.org/docs/18/errcodes-appendix.html
 */
const CONFLICTS = new Set(["40001", "40P01", DUPLICATE, "22012", LOCK_TIMEOUT]);

/** Whether the unit of work lost against another one, so that running it again on fresh data makes sense. */
export function isConflict(error: unknown): boolean {
  return hasCode(error, (code) => CONFLICTS.has(code));
}

/** Whether a row was locked by somebody for longer than a unit of work waits. */
export function isLockTimeout(error: unknown): boolean {
  return hasCode(error, (code) => code === LOCK_TIMEOUT);
}

/** Whether a unique index was filled already: by somebody else, or by another command of the same batch. */
export function isDuplicate(error: unknown): boolean {
  return hasCode(error, (code) => code === DUPLICATE);
}

const NETWORK = new Set(["ECONNREFUSED", "ECONNRESET", "EPIPE", "ETIMEDOUT", "ENOTFOUND", "EAI_AGAIN", "EHOSTUNREACH"]);

/** Class 08: connection exception; 57P0x: the server shuts down or starts; 53300: no connection left. */
function isUnavailableCode(code: string): boolean {
  return NETWORK.has(code) || code.startsWith("08") || /^57P0[1-5]$/.test(code) || code === "53300";
}

const LOST_CONNECTION =
  /connection terminated|query read timeout|timeout exceeded when trying to connect|client has encountered a connection/i;

/** Whether the database could not be reached, so that nobody knows what became of the transaction. */
export function isUnavailable(error: unknown): boolean {
  if (hasCode(error, isUnavailableCode)) return true;
  for (const { message } of causes(error)) {
    if (typeof message === "string" && LOST_CONNECTION.test(message)) return true;
  }
  return false;
}

/** Makes of a driver's failure what the caller may know. Everything unknown stays as it is: a bug, for the log. */
export function toDomainError(error: unknown): unknown {
  if (error instanceof DomainError) return error;
  if (isUnavailable(error)) {
    const message = "the database can't be reached; send the request again with the same request id";
    return new DomainError("DATABASE_UNAVAILABLE", message, {}, { retryAfterMs: 1_000, cause: error });
  }
  // 22021: Postgres stores no NUL character in text. The contract refuses it in requests; a token's subject may hold one.
  if (hasCode(error, (code) => code === "22021" || code === "22P05")) {
    return new DomainError("ARGUMENT_INVALID", "text must not contain the NUL character", {}, { cause: error });
  }
  return error;
}
