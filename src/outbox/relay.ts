import type { Database } from "../db/database.ts";
import { MOST, type Waiting } from "../db/lag.ts";
import { eventsAfter, type Position, type StoredEvent } from "./feed.ts";
import { type HealthObserver, SinkHealth } from "./health.ts";
import { firstOfLanes } from "./lanes.ts";
import { Lease, LeaseLost } from "./lease.ts";
import { type Delivery, type Failure, isFailure, laneOf, type Sink } from "./sink.ts";
import {
  dueEvents,
  isOnlyLane,
  note,
  pauseAfter,
  type SetAside,
  shortestPauseAfter,
  type Undelivered,
  waitingLanes,
} from "./undelivered.ts";

/** How many events are taken at a time. */
const BATCH = 500;
/** While the sink is down, events of so many aggregates show whether it is back, chosen among the next so many. */
const PROBE = 32;
const PROBE_WINDOW = 5_000;

/** Its row in `event_reader`, which all processes share. */
export const SINK = "sink";

/** What an operator may want to know. */
export type RelayObserver = HealthObserver &
  Readonly<{
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

/** What has become of events that were tried to see whether the sink is back. */
type Probed = "took" | "nothing" | "crowded" | "waits";

/**
 * Delivers events to the sink, at least once, those of one aggregate in order. Of all processes one does it at a time; when
 * it dies, another one goes on within seconds.
 *
 * An event that can't be delivered is set aside with those behind it of its aggregate, and tried again with growing pauses,
 * beside the others, which go on. While the sink takes nothing from anybody, everything waits where it is, and no attempt
 * counts.
 */
export class Relay {
  readonly #db: Database;
  readonly #sink: Sink;
  readonly #maxAttempts: number;
  readonly #observer: RelayObserver;
  readonly #lease: Lease;
  readonly #health: SinkHealth;
  readonly #stopping = new AbortController();
  /** The ids of events behind the position that were delivered already, to see whether the sink is back. */
  readonly #ahead = new Set<string>();

  constructor({ db, sink, maxAttempts, observer = {} }: RelayOptions) {
    this.#db = db;
    this.#sink = sink;
    this.#maxAttempts = maxAttempts;
    this.#observer = observer;
    this.#lease = new Lease(db, SINK);
    this.#health = new SinkHealth(observer);
  }

  /** Delivers the next events. Answers whether there may be more to be delivered at once. */
  async run(): Promise<boolean> {
    if (this.#stopping.signal.aborted) return false;
    try {
      const position = await this.#lease.claim();
      if (!position || this.#health.isPaused) return false;
      const probed = this.#health.isDown ? await this.#probe(position) : "nothing";
      if (probed === "waits") return false;
      const events = await this.#db.read((em) => eventsAfter(em, position, BATCH));
      if (events.length > 0) await this.#relay(events, probed);
      return !this.#stopping.signal.aborted && events.length === BATCH;
    } catch (error) {
      // Nobody knows how far that has come.
      this.#lease.drop();
      this.#ahead.clear();
      if (error instanceof LeaseLost) return false;
      throw error;
    }
  }

  /** Tries events again that were set aside; may run beside `run`. Answers whether there may be more. */
  async retry(): Promise<boolean> {
    if (this.#stopping.signal.aborted || !this.#lease.isHeld) return false;
    try {
      const due = await this.#db.read((em) => dueEvents(em, BATCH));
      const each = await this.#deliver(due.map(({ event }) => event));
      if (this.#stopping.signal.aborted) return false;
      const done = due.filter((_, index) => each[index] === "delivered").map(({ event }) => event);
      const aside = await this.#failedAgain(due, each);
      if (done.length + aside.length === 0) return false;
      await this.#lease.hold((em) => note(em, done, aside));
      this.#tell(aside);
      return due.length === BATCH && !each.includes("untried");
    } catch (error) {
      if (!(error instanceof LeaseLost)) throw error;
      this.#lease.drop();
      return false;
    }
  }

  /** Ends the deliveries that are under way. */
  abort(): void {
    this.#stopping.abort();
  }

  /** Lets another process go on at once. Neither `run` nor `retry` may be under way. */
  async close(): Promise<void> {
    await this.#lease.release().catch(() => {});
    await this.#sink.close();
  }

  async #deliver(events: readonly StoredEvent[]): Promise<readonly Delivery[]> {
    if (events.length === 0) return [];
    const stop = this.#stopping.signal;
    const each = await this.#lease.during(stop, (signal) => this.#sink.deliver(events, signal));
    if (each.includes("delivered")) this.#health.took();
    return each;
  }

  /**
   * While the sink is down: tries events of aggregates, and of types, as different as there are. One that is never answered,
   * or many of one kind, must not pass for a sink that takes nothing. Answers whether one was taken, or nothing was there to
   * be tried, or everything waits on; `crowded` when few aggregates fill all that was looked at, and hide what comes behind.
   */
  async #probe(position: Position): Promise<Probed> {
    const events = await this.#db.read((em) => eventsAfter(em, position, PROBE_WINDOW));
    const some = firstOfLanes(await this.#free(events), PROBE);
    const each = await this.#deliver(some);
    for (const [index, { id }] of some.entries()) if (each[index] === "delivered") this.#ahead.add(id);
    if (each.includes("delivered")) return "took";
    const failed = each.find(isFailure);
    if (!failed || !isSilent(each)) return "nothing";
    if (events.length === PROBE_WINDOW && some.length < PROBE) return "crowded";
    if (!this.#stopping.signal.aborted) this.#health.failed(failed.message);
    return "waits";
  }

  /** Those that were not delivered yet, and stand behind none that was set aside. */
  async #free(events: readonly StoredEvent[]): Promise<readonly StoredEvent[]> {
    if (events.length === 0) return [];
    const waiting = await this.#db.read((em) => waitingLanes(em, events));
    return events.filter((event) => !waiting.has(laneOf(event)) && !this.#ahead.has(event.id));
  }

  /** What is not taken is set aside, or all waits, by what the sink has taken, now and when it was `probed`. */
  async #relay(events: readonly StoredEvent[], probed: Probed): Promise<void> {
    const free = await this.#free(events);
    const each = await this.#deliver(free);
    const ends = new Map(free.map((event, index) => [event, each[index]]));
    const delivered = (event: StoredEvent) => ends.get(event) === "delivered" || this.#ahead.has(event.id);
    const stopping = this.#stopping.signal.aborted;
    const waits = stopping || (probed === "nothing" && isSilent(each));
    const end = events.findIndex((event) => (waits ? !delivered(event) : ends.get(event) === "untried"));
    const done = end < 0 ? events : events.slice(0, end);
    const last = done.at(-1);
    const took = probed === "took" || each.includes("delivered");
    if (last) {
      const rest = done.filter((event) => !delivered(event));
      const aside = rest.map((event) => this.#setAside({ event, attempts: 0 }, ends.get(event) ?? "held", took));
      await this.#lease.advance(last, (em) => note(em, [], aside));
      for (const { id } of done) this.#ahead.delete(id);
      this.#tell(aside);
    }
    const failed = each.find(isFailure);
    if (failed && !stopping && (waits || !took)) this.#health.failed(failed.message);
  }

  /**
   * What is noted of those that failed again. An attempt counts when the sink has taken something since the one before: else
   * it may be the sink's fault. One that it has refused counts also when there is nothing else that could be taken.
   */
  async #failedAgain(due: readonly Undelivered[], each: readonly Delivery[]): Promise<SetAside[]> {
    const failed = due.flatMap((one, index) => {
      const end = each[index] as Delivery;
      return isFailure(end) ? [{ one, end }] : [];
    });
    if (failed.length === 0) return [];
    const took = each.includes("delivered");
    const vain = took ? 0 : this.#health.retriedInVain();
    const refused = failed.some(({ end }) => end.kind === "refused");
    const alone = !took && refused && (await this.#db.read(isOnlyLane));
    return failed.map(({ one, end }) => {
      const counts =
        took || this.#health.tookWithin(shortestPauseAfter(one.attempts)) || (alone && end.kind === "refused");
      const aside = this.#setAside(one, end, counts);
      // The first attempt counts in any case: it is not one that was never tried.
      const attempts = Math.max(1, one.attempts);
      return counts ? aside : { ...aside, attempts, pauseMs: pauseAfter(attempts + 1 + vain), dead: false };
    });
  }

  /** `mayDie`: whether it is given up when it was tried often enough. */
  #setAside({ event, attempts: before }: Undelivered, end: Delivery, mayDie: boolean): SetAside {
    if (!isFailure(end)) return { event, attempts: before, error: "", dead: false };
    const attempts = before + 1;
    const dead = mayDie && attempts >= this.#maxAttempts;
    return { event, attempts, pauseMs: pauseAfter(attempts), error: end.message, dead };
  }

  #tell(aside: readonly SetAside[]): void {
    for (const { event, attempts, error, dead } of aside) if (dead) this.#observer.dead?.(event, { attempts, error });
  }
}

/**
 * Whether it looks as if the sink takes nothing from anybody: it has stopped to take anything, or several aggregates were
 * tried and none got through. Of one alone nobody knows, and what was refused one by one has at least been looked at.
 */
function isSilent(each: readonly Delivery[]): boolean {
  if (each.includes("untried")) return true;
  const failures = each.filter(isFailure);
  return !each.includes("delivered") && failures.length > 1 && !failures.every(isRefused);
}

const isRefused = ({ kind }: Failure) => kind === "refused";

/** Events that the sink has not got, and is still to get. Those held behind a failed one are not the oldest. */
export const undeliveredEvents: Waiting = {
  sql: `
    (select e.create_time as due_time, 0 as failures from event_reader r, lateral (
       select create_time from event e where (e.xid, e.id) > (r.xid, r.event_id)
        order by e.xid, e.id limit ${MOST}) e
      where r.name = '${SINK}')
    union all
    (select e.create_time, u.attempts from (
       select event_id, attempts from event_undelivered where not dead order by retry_time limit ${MOST}) u
       join event e on e.id = u.event_id)`,
  values: [],
};
