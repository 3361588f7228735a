import { randomUUID } from "node:crypto";
import type { Database } from "../db/database.ts";
import { eventsAfter, type Position, type StoredEvent } from "./feed.ts";
import { advance, claim, LEASE_S, LeaseLost, release } from "./lease.ts";
import { type Deliveries, type Delivery, type Failure, isFailure, laneOf, type Sink } from "./sink.ts";
import {
  dueEvents,
  forget,
  pauseAfter,
  type SetAside,
  setAside,
  type Undelivered,
  waitingLanes,
} from "./undelivered.ts";

/** How many events are taken at a time; while the sink is down, only as many as show whether it is back. */
const BATCH = 500;
const PROBE = 32;
/** How often the lease is renewed by who has it, and asked for by who doesn't, in milliseconds. */
const CLAIM_INTERVAL = (LEASE_S * 1_000) / 3;
/** How often events that were set aside are looked for, in milliseconds. */
const DUE_INTERVAL = 1_000;

/** Its row in `event_reader`, which all processes share. */
export const SINK = "sink";

/** What an operator may want to know. */
export type RelayObserver = Readonly<{
  /** The sink takes nothing: it is tried again after `pauseMs`. */
  down?(trouble: { attempts: number; pauseMs: number; error: string }): void;
  /** It does again. */
  up?(): void;
  /** An event was given up after so many attempts. */
  dead?(event: StoredEvent, trouble: { attempts: number; error: string }): void;
}>;

export type RelayOptions = Readonly<{
  db: Database;
  sink: Sink;
  /** After so many attempts an event is given up, until somebody replays it. */
  maxAttempts: number;
  observer?: RelayObserver;
}>;

/**
 * Delivers events to the sink, at least once, those of one aggregate in order. Of all processes one does it at a time; when
 * it dies, another one goes on within seconds.
 *
 * An event that can't be delivered is set aside with those behind it of its aggregate, and tried again with growing pauses;
 * all others go on. While the sink takes nothing at all, everything waits where it is.
 */
export class Relay {
  readonly #db: Database;
  readonly #sink: Sink;
  readonly #maxAttempts: number;
  readonly #observer: RelayObserver;
  readonly #owner = randomUUID();
  readonly #stopping = new AbortController();
  /** How far it has come; undefined while another process relays. */
  #position: Position | undefined;
  #claimedAt = Number.NEGATIVE_INFINITY;
  #lookedAt = Number.NEGATIVE_INFINITY;
  /** How often in a row the sink took nothing, and until when it is left alone. */
  #downs = 0;
  #pauseUntil = 0;

  constructor({ db, sink, maxAttempts, observer = {} }: RelayOptions) {
    this.#db = db;
    this.#sink = sink;
    this.#maxAttempts = maxAttempts;
    this.#observer = observer;
  }

  /** Delivers the next events. Answers whether there may be more to be delivered at once. */
  async run(): Promise<boolean> {
    if (this.#stopping.signal.aborted) return false;
    try {
      const position = await this.#claim();
      if (!position || performance.now() < this.#pauseUntil) return false;
      const again = await this.#retry();
      const limit = this.#downs > 0 ? PROBE : BATCH;
      const events = await this.#db.read((em) => eventsAfter(em, position, limit));
      if (events.length > 0) await this.#relay(events);
      return !this.#stopping.signal.aborted && (again || events.length === limit);
    } catch (error) {
      this.#position = undefined;
      if (error instanceof LeaseLost) return false;
      throw error;
    }
  }

  /** Ends the deliveries that are under way. */
  abort(): void {
    this.#stopping.abort();
  }

  /** Lets another process go on at once. No `run` may be under way. */
  async close(): Promise<void> {
    await this.#db.maintain((em) => release(em, SINK, this.#owner)).catch(() => {});
    await this.#sink.close();
  }

  /** How far this process has come, if it is the one that relays. */
  async #claim(): Promise<Position | undefined> {
    const now = performance.now();
    if (now - this.#claimedAt < CLAIM_INTERVAL) return this.#position;
    this.#claimedAt = now;
    this.#position = await this.#db.maintain((em) => claim(em, SINK, this.#owner));
    return this.#position;
  }

  async #deliver(events: readonly StoredEvent[]): Promise<Deliveries> {
    if (events.length === 0) return { each: [], down: false };
    const lost = new AbortController();
    const renew = async () => {
      this.#claimedAt = performance.now();
      if (!(await this.#db.maintain((em) => claim(em, SINK, this.#owner)))) lost.abort();
    };
    const renewing = setInterval(() => void renew().catch(() => {}), CLAIM_INTERVAL);
    try {
      const deliveries = await this.#sink.deliver(events, AbortSignal.any([this.#stopping.signal, lost.signal]));
      if (lost.signal.aborted) throw new LeaseLost("another process relays");
      return deliveries;
    } finally {
      clearInterval(renewing);
    }
  }

  async #relay(events: readonly StoredEvent[]): Promise<void> {
    const waiting = await this.#db.read((em) => waitingLanes(em, events));
    const free = events.filter((event) => !waiting.has(laneOf(event)));
    const { each, down } = await this.#deliver(free);
    const ends = new Map<StoredEvent, Delivery>(free.map((event, index) => [event, each[index] as Delivery]));
    const delivered = (event: StoredEvent) => ends.get(event) === "delivered";
    const failed = each.find(isFailure);
    if (failed && (this.#stopping.signal.aborted || this.#waits(down, each))) {
      // All else comes again: some of it for the second time.
      const until = events.findIndex((event) => !delivered(event));
      const last = events[until - 1];
      if (last) await this.#advance(last);
      if (!this.#stopping.signal.aborted) this.#pause(failed.message);
      return;
    }
    this.#resume();
    const rest = events.filter((event) => !delivered(event));
    const aside = rest.map((event) => this.#attempted({ event, attempts: 0 }, ends.get(event) ?? "held"));
    await this.#advance(events.at(-1) as StoredEvent, aside);
  }

  /** Whether everything waits: the sink is down, and has not answered so often that it is given up on these events. */
  #waits(down: boolean, each: readonly Delivery[]): boolean {
    const answered = each.every((end) => !isFailure(end) || end.kind !== "unreachable");
    return down && !(answered && this.#downs + 1 >= this.#maxAttempts);
  }

  async #advance(to: Position, aside: readonly SetAside[] = []): Promise<void> {
    await this.#db.maintain(async (em) => {
      await setAside(em, aside);
      await advance(em, SINK, this.#owner, to);
    });
    this.#position = { xid: to.xid, id: to.id };
    this.#tell(aside);
  }

  /** Tries events again that were set aside. Answers whether there may be more. */
  async #retry(): Promise<boolean> {
    if (performance.now() - this.#lookedAt < DUE_INTERVAL) return false;
    this.#lookedAt = performance.now();
    const due = await this.#db.read((em) => dueEvents(em, BATCH));
    const { each, down } = await this.#deliver(due.map(({ event }) => event));
    if (this.#stopping.signal.aborted) return false;
    const ended = due.map((one, index) => ({ one, end: each[index] as Delivery }));
    const done = ended.filter(({ end }) => end === "delivered").map(({ one }) => one.event);
    // When nobody is reached at all, that is not held against the events.
    const failed = ended.filter(({ end }) => isFailure(end) && !(down && end.kind === "unreachable"));
    const aside = failed.map(({ one, end }) => this.#attempted(one, end));
    if (down && failed.length === 0) this.#pause((each.find(isFailure) as Failure).message);
    if (done.length + aside.length > 0) {
      await this.#db.maintain(async (em) => {
        // Whoever relays now may have delivered them meanwhile.
        if (!(await claim(em, SINK, this.#owner))) throw new LeaseLost("another process relays");
        await forget(em, done);
        await setAside(em, aside);
      });
      this.#tell(aside);
    }
    return due.length === BATCH && !down;
  }

  #attempted({ event, attempts: before }: Undelivered, end: Delivery): SetAside {
    if (!isFailure(end)) return { event, attempts: before, error: "", dead: false };
    const attempts = before + 1;
    return { event, attempts, error: end.message, dead: attempts >= this.#maxAttempts };
  }

  #tell(aside: readonly SetAside[]): void {
    for (const { event, attempts, error, dead } of aside) if (dead) this.#observer.dead?.(event, { attempts, error });
  }

  #pause(error: string): void {
    this.#downs += 1;
    const pauseMs = pauseAfter(this.#downs);
    this.#pauseUntil = performance.now() + pauseMs;
    this.#observer.down?.({ attempts: this.#downs, pauseMs, error });
  }

  #resume(): void {
    if (this.#downs > 0) this.#observer.up?.();
    this.#downs = 0;
  }
}
