import { randomUUID } from "node:crypto";
import type { EntityManager } from "@mikro-orm/postgresql";
import type { Database } from "../db/database.ts";
import type { Position } from "./feed.ts";

/** How long a process that says nothing stays the one that relays, in seconds. */
export const LEASE_S = 3;
/** How often the lease is renewed by who has it, and asked for by who doesn't, in milliseconds. */
const CLAIM_INTERVAL = (LEASE_S * 1_000) / 3;
/** How often it is looked at while something is being delivered, in milliseconds. */
const CHECK_INTERVAL = 100;

/** Another process has become the one that relays, or may have. */
export class LeaseLost extends Error {
  override readonly name = "LeaseLost";

  constructor(name: string) {
    super(`another process relays the events to ${name}`);
  }
}

/** By the clock of the database: those of processes differ. */
const LEASE_END = `clock_timestamp() + interval '${LEASE_S} s'`;

/** Becomes, or stays, the owner, and answers how far that has come; undefined while somebody else is it. */
async function claim(em: EntityManager, name: string, owner: string): Promise<Position | undefined> {
  const [row] = await em.execute<Position[]>(
    `update event_reader set owner = ?, lease_end = ${LEASE_END}
      where name = ? and (owner = ? or owner is null or lease_end < clock_timestamp())
      returning xid::text as xid, event_id as id`,
    [owner, name, owner],
  );
  return row;
}

/** Stays the owner. @throws LeaseLost when somebody else has become it, also when that one has ended since */
async function renew(em: EntityManager, name: string, owner: string): Promise<void> {
  const rows = await em.execute(
    `update event_reader set lease_end = ${LEASE_END} where name = ? and owner = ? returning name`,
    [name, owner],
  );
  if (rows.length === 0) throw new LeaseLost(name);
}

/** Moves on behind the last event that was taken care of. @throws LeaseLost when somebody else does that now */
async function advance(em: EntityManager, name: string, owner: string, to: Position): Promise<void> {
  const rows = await em.execute(
    `update event_reader set xid = ?::xid8, event_id = ?, lease_end = ${LEASE_END}
      where name = ? and owner = ? and (xid, event_id) < (?::xid8, ?::uuid) returning name`,
    [to.xid, to.id, name, owner, to.xid, to.id],
  );
  if (rows.length === 0) throw new LeaseLost(name);
}

/**
 * Makes one process at a time the one that relays to `name`. A row and not an advisory lock, which would belong to a
 * session: behind a pooler nobody knows whose.
 */
export class Lease {
  readonly #db: Database;
  readonly #name: string;
  readonly #owner = randomUUID();
  /** How far that has come; undefined while another process does it. */
  #position: Position | undefined;
  #askedAt = Number.NEGATIVE_INFINITY;
  /** Until when nobody else can have it, by the clock of this process. */
  #end = Number.NEGATIVE_INFINITY;

  constructor(db: Database, name: string) {
    this.#db = db;
    this.#name = name;
  }

  get isHeld(): boolean {
    return performance.now() < this.#end;
  }

  /** Becomes, or stays, the process that relays, and answers how far that has come; undefined while another one does it. */
  async claim(): Promise<Position | undefined> {
    if (performance.now() - this.#askedAt >= CLAIM_INTERVAL) {
      this.#position = await this.#ask((em) => claim(em, this.#name, this.#owner));
      if (!this.#position) this.drop();
    }
    return this.#position;
  }

  /**
   * Runs `work` and renews the lease meanwhile. `signal` fires with `stop`, and when the lease has ended since it could not
   * be renewed: somebody else may be at the same work from then on.
   *
   * @throws LeaseLost when that has happened
   */
  async during<T>(stop: AbortSignal, work: (signal: AbortSignal) => Promise<T>): Promise<T> {
    const lost = new AbortController();
    const look = () => {
      if (!this.isHeld) lost.abort();
      // One that fails is tried again, until the lease has ended.
      else if (performance.now() - this.#askedAt >= CLAIM_INTERVAL) void this.#renew().catch(() => {});
    };
    const looking = setInterval(look, CHECK_INTERVAL);
    try {
      const result = await work(AbortSignal.any([stop, lost.signal]));
      if (lost.signal.aborted) throw new LeaseLost(this.#name);
      return result;
    } finally {
      clearInterval(looking);
    }
  }

  /** Moves on behind the last event that was taken care of, in one transaction with `statements`. @throws LeaseLost */
  async advance(to: Position, statements: (em: EntityManager) => Promise<void>): Promise<void> {
    await this.#ask(async (em) => {
      await advance(em, this.#name, this.#owner, to);
      await statements(em);
    });
    this.#position = { xid: to.xid, id: to.id };
  }

  /** Runs `statements` in a transaction in which nobody else becomes the one that relays. @throws LeaseLost */
  async hold(statements: (em: EntityManager) => Promise<void>): Promise<void> {
    await this.#ask(async (em) => {
      await renew(em, this.#name, this.#owner);
      await statements(em);
    });
  }

  /** Does not count on it any more, until it is claimed again. */
  drop(): void {
    this.#position = undefined;
    this.#end = Number.NEGATIVE_INFINITY;
  }

  /** Lets another process relay at once. */
  async release(): Promise<void> {
    this.drop();
    await this.#db.maintain((em) =>
      em.execute("update event_reader set owner = null where name = ? and owner = ?", [this.#name, this.#owner]),
    );
  }

  async #renew(): Promise<void> {
    try {
      await this.#ask((em) => renew(em, this.#name, this.#owner));
    } catch (error) {
      if (error instanceof LeaseLost) this.drop();
      throw error;
    }
  }

  /** Runs what renews the lease. From when it was sent: by the clock of the database it is later. */
  async #ask<T>(statements: (em: EntityManager) => Promise<T>): Promise<T> {
    const asked = performance.now();
    this.#askedAt = asked;
    const result = await this.#db.maintain(statements);
    this.#end = Math.max(this.#end, asked + LEASE_S * 1_000);
    return result;
  }
}
