/** Lines up commands and lets those that may run together become one transaction. */
import { DomainError } from "../error.ts";
import { type BatchObserver, isAwaited, type Lead, type Pending, type Place } from "./batch.ts";

/** The most commands in one transaction. */
const MAX_BATCH = 128;
/** The most transactions that go on at a time: while one is written, the next one is decided. */
const MAX_RUNNING = 2;
/** A transaction that takes longer, in milliseconds, waits for somebody: it makes room for another one. */
const SLOW = 250;
/** The most such transactions at a time. */
const MAX_SLOW = 4;
/** The most commands that wait; whoever comes then is told to come back. */
const MAX_QUEUED = 10_000;
/** One for all: when it is needed there is no time to make many. */
const overloaded = new DomainError("OVERLOADED", "too many requests are waiting", {}, { retryAfterMs: 100 });

type Queued = { readonly pending: Pending; readonly keys: readonly string[]; readonly since: number };

/**
 * A batch that runs. `lead`: what it leaves to the next one, while it is being written and nobody has come behind it.
 * `apart`: it is what is left of one, and waits for a row that somebody outside keeps locked.
 */
type Running = { lead: Lead | undefined; readonly apart: boolean };

export type GroupCommitOptions = Readonly<{
  /** Answers all commands of a batch. */
  run(batch: readonly Pending[], place: Place): Promise<void>;
  observer: BatchObserver;
  maxBatch?: number;
  maxRunning?: number;
  maxQueued?: number;
}>;

/**
 * While a batch is being committed, arriving commands wait; then as many as may run together become the next one. Two
 * batches run at once when they have no row in common, or when one comes behind the other: it goes on with the rows as
 * the other has decided them, and is written behind it. So a process never conflicts with itself. When nothing waits, a
 * command goes at once.
 *
 * Commands that have a row in common run in the order of their arrival: one that has to wait holds back those behind it
 * that touch its rows, and so waits for nobody who came later.
 */
export class GroupCommit {
  readonly #options: GroupCommitOptions;
  readonly #maxBatch: number;
  readonly #maxRunning: number;
  readonly #maxQueued: number;
  #queue: Queued[] = [];
  #running = 0;
  #slow = 0;
  #apart = 0;
  /** So many at the head of the queue are known to wait for a running batch, and hold back who touches these rows. */
  #blocked = 0;
  readonly #heldBack = new Set<string>();
  /** Rows of the batches that run, with the last one to run on each. */
  readonly #busy = new Map<string, Running>();
  #scheduled = false;

  constructor(options: GroupCommitOptions) {
    this.#options = options;
    this.#maxBatch = options.maxBatch ?? MAX_BATCH;
    this.#maxRunning = options.maxRunning ?? MAX_RUNNING;
    this.#maxQueued = options.maxQueued ?? MAX_QUEUED;
  }

  /** The refusal of whoever comes now, when too many wait. */
  get overload(): DomainError | undefined {
    return this.#queue.length < this.#maxQueued ? undefined : overloaded;
  }

  /**
   * Lines a command up; it is answered through its own callbacks. A caller's is refused with OVERLOADED when too many wait;
   * one of the service itself ends what was begun, and there are few.
   */
  submit(pending: Pending): void {
    if (pending.write && this.overload) {
      pending.reject(this.overload);
      return;
    }
    const { answer, touches } = pending;
    const keys = touches.map(({ id }) => id);
    // A request that is sent twice at once is a conflict with itself.
    if (answer) keys.push(answer.id);
    this.#queue.push({ pending, keys, since: performance.now() });
    this.#schedule();
  }

  /** Starts batches after everything that has arrived in this turn of the event loop: nobody waits for a timer. */
  #schedule(): void {
    if (this.#scheduled || this.#running >= this.#maxRunning) return;
    this.#scheduled = true;
    setImmediate(() => {
      this.#scheduled = false;
      while (this.#running < this.#maxRunning) {
        const { batch, behind } = this.#take();
        if (batch.length === 0) return;
        void this.#start(batch, behind);
      }
    });
  }

  async #start(batch: readonly Queued[], behind: Running | undefined): Promise<void> {
    this.#running += 1;
    const keys = batch.flatMap((queued) => queued.keys);
    const running: Running = { lead: undefined, apart: false };
    for (const key of keys) this.#busy.set(key, running);
    const ahead = behind?.lead;
    if (behind) behind.lead = undefined;
    const lead = (offered: Lead | undefined) => {
      running.lead = offered;
      if (offered) this.#reconsider();
    };
    let slow = false;
    const timer = setInterval(() => {
      if (slow || this.#slow === MAX_SLOW) return;
      slow = true;
      this.#slow += 1;
      this.#running -= 1;
      this.#schedule();
    }, SLOW);
    try {
      await this.#options.run(
        batch.map(({ pending }) => pending),
        { ahead, lead, keep: (key, ended) => void this.#keep(key, ended) },
      );
    } finally {
      clearInterval(timer);
      for (const key of keys) if (this.#busy.get(key) === running) this.#busy.delete(key);
      if (slow) this.#slow -= 1;
      else this.#running -= 1;
      this.#reconsider();
    }
  }

  /** Whoever needs this row waits until those have ended who wait for it already; nobody else waits for these. */
  async #keep(key: string, ended: Promise<void>): Promise<void> {
    const rest: Running = { lead: undefined, apart: true };
    this.#busy.set(key, rest);
    this.#apart += 1;
    try {
      await ended;
    } finally {
      this.#apart -= 1;
      if (this.#busy.get(key) === rest) this.#busy.delete(key);
      this.#reconsider();
    }
  }

  /** Rows have become free: who waited for them may not have to any more. */
  #reconsider(): void {
    this.#blocked = 0;
    this.#heldBack.clear();
    this.#schedule();
  }

  /**
   * The commands that may run now, out of the queue, and the batch behind which they have to. Only those are looked at
   * that have come since it was last gone through; when rows have become free, all.
   */
  #take(): { batch: readonly Queued[]; behind: Running | undefined } {
    const batch: Queued[] = [];
    let behind: Running | undefined;
    const candidates = this.#queue.splice(this.#blocked);
    let position = 0;
    for (; position < candidates.length && batch.length < this.#maxBatch; position += 1) {
      const queued = candidates[position] as Queued;
      const { pending, keys } = queued;
      if (!isAwaited(pending)) continue;
      const ahead = this.#aheadOf(keys, behind);
      if (ahead === "wait") {
        for (const key of keys) this.#heldBack.add(key);
        this.#queue.push(queued);
      } else if (ahead === "apart") {
        this.#queue.push(queued);
      } else {
        behind = ahead;
        this.#options.observer.waited?.(performance.now() - queued.since);
        batch.push(queued);
      }
    }
    this.#blocked = this.#queue.length;
    for (; position < candidates.length; position += 1) this.#queue.push(candidates[position] as Queued);
    return { batch, behind };
  }

  /**
   * Behind which running batch a command with these keys may run, where its companions have to be `behind` one. `apart`: it
   * has to wait for a row that somebody outside keeps locked, and nobody for it.
   */
  #aheadOf(keys: readonly string[], behind: Running | undefined): Running | undefined | "wait" | "apart" {
    if (this.#apart > 0 && keys.some((key) => this.#busy.get(key)?.apart)) return "apart";
    let ahead = behind;
    for (const key of keys) {
      if (this.#heldBack.has(key)) return "wait";
      const running = this.#busy.get(key);
      if (!running) continue;
      const { same, changed } = running.lead?.handover ?? {};
      if (!(same?.has(key) || changed?.has(key)) || (ahead && ahead !== running)) return "wait";
      ahead = running;
    }
    return ahead;
  }
}
