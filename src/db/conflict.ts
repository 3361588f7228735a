import { DomainError } from "../error.ts";

type Cause = Error & { code?: unknown; previous?: unknown; errors?: readonly unknown[] };

/**
 * The error itself and what it wraps, outermost first: the ORM and the driver both wrap, and a host of several addresses
 * fails with one error for each.
 */
function* causes(error: unknown): Generator<Cause> {
  let current = error as Cause | undefined;
  for (let depth = 0; depth < 5 && current instanceof Error; depth += 1) {
    yield current;
    current = (current.cause ?? current.previous ?? current.errors?.[0]) as Cause | undefined;
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

/** A request was new as far as anybody had looked, and is not. */
export class AnsweredBefore extends Error {
  override readonly name = "AnsweredBefore";
  /** As of `Outrun`. */
  readonly code = "40001";

  constructor(cause: unknown) {
    super("a request was answered before, or a key is taken", { cause });
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

/** Somebody keeps the row with this key locked. */
export class LockedOut extends Error {
  override readonly name = "LockedOut";
  readonly code = LOCK_TIMEOUT;
  /** Of the touch. */
  readonly key: string;

  constructor(key: string, cause: unknown) {
    super(`${key} is kept locked`, { cause });
    this.key = key;
  }
}

/**
 * A statement was prepared for tables as they were before a migration, or the connection does not have it any more, or has
 * it already, as behind a proxy. It has to be prepared again, under another name.
 */
const STALE = new Set(["0A000", "26000", "42P05"]);

/** Whether a prepared statement can't be used any more. */
export function isStalePlan(error: unknown): boolean {
  return hasCode(error, (code) => STALE.has(code));
}

/**
 * Serialization failure, deadlock, duplicate, lock timeout, the division by zero with which an update fails whose versions were
 * old, and stale plans. https://www.postgresql.org/docs/18/errcodes-appendix.html
 */
const CONFLICTS = new Set(["40001", "40P01", DUPLICATE, "22012", LOCK_TIMEOUT, ...STALE]);

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

/** No connection to the database is to be had. */
export class Unreachable extends Error {
  override readonly name = "Unreachable";
  /** sqlclient_unable_to_establish_sqlconnection */
  readonly code = "08001";

  constructor(cause: unknown) {
    super("no connection to the database", { cause });
  }
}

/**
 * What is the database's fault or the network's, and not that of what was sent. Class 08: connection exception; 25006: it
 * only reads, as after a failover; 25P03: it has ended a transaction in which nothing came; 28, 3D: it lets nobody in; 53:
 * it lacks memory, disk or connections; 57P0x: it shuts down or starts; 58: its system fails. https://www.postgresql.org/docs/18/errcodes-appendix.html
 */
const UNAVAILABLE = /^(08...|25006|25P03|28...|3D...|53...|57P0[1-5]|58...)$/;

const LOST_CONNECTION =
  /connection terminated|query read timeout|timeout exceeded when trying to connect|client has encountered a connection|client was closed|pool after calling end/i;

/** Of the network: whatever a system call of a socket or a name's lookup has failed with. */
function isSystemError(error: object): boolean {
  return "syscall" in error && typeof error.syscall === "string";
}

/** Whether the database could not be reached or can't work, so that nobody knows what became of the transaction. */
export function isUnavailable(error: unknown): boolean {
  if (hasCode(error, (code) => UNAVAILABLE.test(code))) return true;
  for (const one of causes(error)) {
    if (isSystemError(one) || (typeof one.message === "string" && LOST_CONNECTION.test(one.message))) return true;
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
