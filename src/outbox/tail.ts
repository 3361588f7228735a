import type { Database } from "../db/database.ts";
import { every, type Job, type JobObserver } from "../db/job.ts";
import { DomainError } from "../error.ts";
import { Bell } from "./bell.ts";
import type { EventType } from "./event.entity.ts";
import { eventsAfter, isBehind, newestPosition, type Position, START, type StoredEvent } from "./feed.ts";
import { purgedPosition } from "./retention.ts";

/** How many of the newest events are kept in memory for those who follow them. */
const KEPT = 2_000;
/** How many events are read, and sent, at a time; and how many characters of payload, after which no further one is sent. */
const PAGE = 100;
const PAGE_TEXT = 32_768;
/** How often new events are looked for while somebody follows, in milliseconds. */
const POLL_INTERVAL = 100;
/** Who gets no event hears how far it has come: so often, in milliseconds, and after so many events of other types. */
const TELL_INTERVAL = 30_000;
const MOST_SKIPPED = 10_000;

/** Some events, or none, and the position behind which to go on: events of other types may lie in between. */
export type EventPage = Readonly<{ events: readonly StoredEvent[]; position: Position }>;

/**
 * The newest events, read once for all who follow them in this process. Who is further behind reads the table; who reads
 * slowly holds nothing in memory, and goes on from the table later.
 */
export class EventTail {
  readonly #db: Database;
  readonly #observer: JobObserver;
  /** The newest events, in order: all that there are behind `#from`. */
  #kept: StoredEvent[] = [];
  #from: Position | undefined;
  #followers = 0;
  readonly #bell = new Bell();
  #polling: Job | undefined;
  readonly #tellInterval: number;
  /** How often everybody was to be told how far it has come, and when that was last. */
  #tellings = 0;
  #toldMs = 0;

  constructor(db: Database, observer: JobObserver, tellInterval = TELL_INTERVAL) {
    this.#db = db;
    this.#observer = observer;
    this.#tellInterval = tellInterval;
  }

  /** How many follow now. */
  get followers(): number {
    return this.#followers;
  }

  /**
   * The events behind a position, in the order in which they come, and then those that happen, until `signal` fires. START
   * is in front of the first one that is kept; left out, the position is now, and told at once. `types`: only these; none is
   * all. Where there are none for long, a page without events tells how far that is.
   *
   * @throws DomainError POSITION_EXPIRED when events behind the position are no longer kept, also later
   */
  async *follow(
    after: Position | undefined,
    types: readonly EventType[],
    signal: AbortSignal,
  ): AsyncGenerator<EventPage, void> {
    if (signal.aborted) return;
    this.#followers += 1;
    if (this.#followers === 1) this.#poll();
    try {
      const begin = after ?? (await this.#db.read(newestPosition));
      if (!after) yield { events: [], position: begin };
      yield* this.#pages(begin, new Set(types), signal);
    } finally {
      this.#followers -= 1;
      if (this.#followers === 0) void this.#polling?.stop();
    }
  }

  async *#pages(begin: Position, types: ReadonlySet<EventType>, signal: AbortSignal): AsyncGenerator<EventPage, void> {
    // Whoever begins at the start does not miss what was deleted by then.
    const kept = begin === START ? await this.#db.read(purgedPosition) : begin;
    let position = begin;
    // Of large events fewer are read at a time.
    let limit = PAGE;
    let told = { position, tellings: this.#tellings };
    let skipped = 0;
    while (!signal.aborted) {
      const seen = this.#bell.rings;
      const page = this.#fromMemory(position) ?? (await this.#fromTable(position, limit, kept));
      const events = types.size > 0 ? page.events.filter(({ type }) => types.has(type)) : page.events;
      const moved = page.position !== position;
      ({ position, limit } = page);
      skipped += page.events.length - events.length;
      const due = told.tellings !== this.#tellings || skipped >= MOST_SKIPPED;
      if (events.length > 0 || (due && position !== told.position)) {
        told = { position, tellings: this.#tellings };
        skipped = 0;
        yield { events, position };
      } else if (!moved) await this.#bell.wait(seen, signal);
    }
  }

  #fromMemory(position: Position): Page | undefined {
    if (!this.#from || isBehind(this.#from, position)) return undefined;
    let at = this.#kept.length;
    while (at > 0 && isBehind(this.#kept[at - 1] as StoredEvent, position)) at -= 1;
    return pageOf(this.#kept.slice(at, at + PAGE), position);
  }

  /** @throws DomainError POSITION_EXPIRED when events behind the position, and behind `kept`, have been deleted */
  async #fromTable(position: Position, limit: number, kept: Position): Promise<Page> {
    return this.#db.read(async (em) => {
      const events = await eventsAfter(em, position, limit);
      // Asked behind the page: none of these was deleted before it was read.
      const purged = await purgedPosition(em);
      if (isBehind(purged, position) && isBehind(purged, kept)) {
        throw new DomainError("POSITION_EXPIRED", "events behind this position are no longer kept");
      }
      return pageOf(events, position);
    });
  }

  #poll(): void {
    this.#kept = [];
    this.#from = undefined;
    this.#toldMs = performance.now();
    this.#polling = every(POLL_INTERVAL, (signal) => this.#read(signal), this.#observer);
  }

  /** Reads new events. Answers whether there may be more. */
  async #read(signal: AbortSignal): Promise<boolean> {
    const from = this.#kept.at(-1) ?? this.#from;
    if (!from) {
      const newest = await this.#db.read(newestPosition);
      if (signal.aborted) return false;
      this.#from = newest;
      // Who has read the table meanwhile, a moment too early for the last of these events, waits to hear of it.
      this.#bell.ring();
      return true;
    }
    const events = await this.#db.read((em) => eventsAfter(em, from, PAGE));
    const now = performance.now();
    const tell = now - this.#toldMs >= this.#tellInterval;
    if (signal.aborted || (events.length === 0 && !tell)) return false;
    if (tell) {
      this.#toldMs = now;
      this.#tellings += 1;
    }
    this.#kept.push(...events);
    const dropped = this.#kept.splice(0, Math.max(0, this.#kept.length - KEPT));
    this.#from = dropped.at(-1) ?? this.#from;
    this.#bell.ring();
    return events.length === PAGE;
  }
}

/** `limit`: how many events of this size to read the next time. */
type Page = EventPage & Readonly<{ limit: number }>;

/** As many of these events as go together. Who does not read has one page of its own in memory. */
function pageOf(events: readonly StoredEvent[], before: Position): Page {
  let [count, text] = [0, 0];
  for (const { payload } of events) {
    if (text >= PAGE_TEXT) break;
    text += payload.length;
    count += 1;
  }
  const last = events[count - 1];
  const limit = Math.min(PAGE, Math.ceil((PAGE_TEXT * count) / Math.max(1, text)) + 1);
  return { events: events.slice(0, count), position: last ? { xid: last.xid, id: last.id } : before, limit };
}
