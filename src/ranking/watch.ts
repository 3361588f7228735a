import { setTimeout as delay, setImmediate as nextTurn } from "node:timers/promises";
import { every, type Job, type JobObserver } from "../db/job.ts";
import { Bell } from "../outbox/bell.ts";
import { Board } from "./board.ts";
import type { Top, TopQuery } from "./top.ts";

/** How often an answer that somebody watches is looked at, in milliseconds, when nobody says that it has changed. */
const POLL_INTERVAL = 500;
/** The shortest time between two looks at an answer: at most four changes are sent in a second; of more, the latest. */
const SHORTEST_PAUSE = 250;
/** So much longer than sending takes is the pause between two changes: many watchers leave the time to others. */
const PAUSE_FOR_SENDING = 9;
/** How long an answer is waited for, in milliseconds: one that does not come holds up all others. */
const QUERY_LIMIT = 15_000;
/** The largest limit: a shorter list is the beginning of it. */
const LONGEST = 100;

type Watched = { readonly board: Board; readonly job: Job; watchers: number };

const keyOf = ({ days, byVariant }: TopQuery) => `${days} ${byVariant}`;

/**
 * Answers of `top` to all who watch them in this process: each is asked of the database once for all of them, and one
 * after the other. Who reads slowly gets the latest answer, and not each that there was.
 */
export class RankingWatch {
  readonly #top: (query: TopQuery) => Promise<Top>;
  readonly #observer: JobObserver;
  readonly #queryLimit: number;
  readonly #boards = new Map<string, Watched>();
  /** Rings when somebody says that answers may have changed. */
  readonly #hint = new Bell();
  /** Ends when the look at hand, and all that wait for it, are over. */
  #looks: Promise<unknown> = Promise.resolve();

  constructor(top: (query: TopQuery) => Promise<Top>, observer: JobObserver, queryLimit = QUERY_LIMIT) {
    this.#top = top;
    this.#observer = observer;
    this.#queryLimit = queryLimit;
  }

  /** How many watch now. */
  get watchers(): number {
    return this.#boards.values().reduce((sum, { watchers }) => sum + watchers, 0);
  }

  /** Answers may have changed. */
  hint(): void {
    this.#hint.ring();
  }

  /** The answer at once, and again whenever it has changed, until `signal` fires; all who watch get the same object. */
  async *watch(query: TopQuery, signal: AbortSignal): AsyncGenerator<Top, void> {
    if (signal.aborted) return;
    const { board } = this.#join(query);
    try {
      let shown = 0;
      while (!signal.aborted) {
        const seen = board.bell.rings;
        const answer = board.answer(query.limit);
        if (answer && answer.turn !== shown) yield answer.top;
        shown = answer?.turn ?? shown;
        await board.bell.wait(seen, signal);
      }
    } finally {
      this.#leave(board);
    }
  }

  #join(query: TopQuery): Watched {
    const key = keyOf(query);
    const watched = this.#boards.get(key) ?? this.#open(key, new Board({ ...query, limit: LONGEST }));
    watched.watchers += 1;
    return watched;
  }

  #open(key: string, board: Board): Watched {
    const job = every(SHORTEST_PAUSE, (stopping) => this.#follow(board, stopping), this.#observer);
    const watched = { board, job, watchers: 0 };
    this.#boards.set(key, watched);
    return watched;
  }

  #leave(board: Board): void {
    const key = keyOf(board.query);
    const watched = this.#boards.get(key);
    if (!watched) return;
    watched.watchers -= 1;
    if (watched.watchers > 0) return;
    this.#boards.delete(key);
    void watched.job.stop();
  }

  /** Looks at an answer when it is time to, and in its turn. */
  async #follow(board: Board, stopping: AbortSignal): Promise<boolean> {
    if (board.answered) await this.#pause(stopping);
    const look = this.#looks.then(() => (stopping.aborted ? false : this.#look(board)));
    this.#looks = look.catch(() => {});
    return look;
  }

  async #pause(stopping: AbortSignal): Promise<void> {
    const seen = this.#hint.rings;
    const sendingMs = this.#boards.values().reduce((sum, { board }) => sum + board.sendingMs, 0);
    const pause = Math.max(SHORTEST_PAUSE, sendingMs * PAUSE_FOR_SENDING);
    await delay(pause, undefined, { signal: stopping }).catch(() => {});
    await this.#hint.wait(seen, stopping, Math.max(0, POLL_INTERVAL - pause));
  }

  async #look(board: Board): Promise<boolean> {
    try {
      const changed = board.update(await inTime(this.#top(board.query), this.#queryLimit));
      board.sendingMs = changed ? await send(board.bell) : 0;
      return true;
    } catch (error) {
      if (board.answered) throw error;
      // Its watchers hear it themselves.
      board.fail(error);
      return false;
    }
  }
}

/** Rings, and answers how long those who were waiting took to write what they send, in milliseconds. */
async function send(bell: Bell): Promise<number> {
  const began = performance.now();
  bell.ring();
  // They write before the event loop's next turn, and their connections in the one behind it.
  await nextTurn();
  await nextTurn();
  return performance.now() - began;
}

/** The result of `work`. @throws Error when it takes longer than `limitMs` */
async function inTime<T>(work: Promise<T>, limitMs: number): Promise<T> {
  const { promise: late, reject } = Promise.withResolvers<never>();
  const error = new Error(`the ranking's query takes longer than ${limitMs} ms`);
  const timer = setTimeout(() => reject(error), limitMs);
  try {
    return await Promise.race([work, late]);
  } finally {
    clearTimeout(timer);
  }
}
