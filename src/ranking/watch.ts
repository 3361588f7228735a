import { setTimeout as delay } from "node:timers/promises";
import { Bell } from "../outbox/bell.ts";
import type { Top, TopQuery } from "./top.ts";

/** How often an answer that somebody watches is looked at, in milliseconds, when nobody says that it has changed. */
const POLL_INTERVAL = 500;
/** The most changes that are sent in a second; of more, the latest. */
const MAX_CHANGES = 4;
/** The largest limit: a shorter list is the beginning of it. */
const LONGEST = 100;

/** An answer that is watched, and how often it has changed. */
type Board = { readonly query: TopQuery; readonly bell: Bell; top: Promise<Top> | Top; watchers: number };

const keyOf = ({ days, byVariant }: TopQuery) => `${days} ${byVariant}`;

/**
 * Answers of `top` to all who watch them in this process: each is asked of the database once for all of them. Who
 * reads slowly gets the latest answer, and not each that there was.
 */
export class RankingWatch {
  readonly #top: (query: TopQuery) => Promise<Top>;
  readonly #onError: (error: unknown) => void;
  readonly #boards = new Map<string, Board>();
  /** Rings when somebody says that answers may have changed. */
  readonly #hint = new Bell();
  #polling: AbortController | undefined;

  constructor(top: (query: TopQuery) => Promise<Top>, onError: (error: unknown) => void) {
    this.#top = top;
    this.#onError = onError;
  }

  /** How many watch now. */
  get watchers(): number {
    return this.#boards.values().reduce((sum, { watchers }) => sum + watchers, 0);
  }

  /** Answers may have changed. */
  hint(): void {
    this.#hint.ring();
  }

  /** The answer at once, and again whenever it has changed, until `signal` fires. */
  async *watch(query: TopQuery, signal: AbortSignal): AsyncGenerator<Top, void> {
    const board = this.#join(query);
    try {
      let shown = "";
      while (!signal.aborted) {
        const seen = board.bell.rings;
        const { products, asOf } = await board.top;
        const first = products.slice(0, query.limit);
        const text = textOf(first);
        if (text !== shown || shown === "") yield { products: first, asOf };
        shown = text;
        await board.bell.wait(seen, signal);
      }
    } finally {
      this.#leave(board);
    }
  }

  #join(query: TopQuery): Board {
    const key = keyOf(query);
    const whole = { ...query, limit: LONGEST };
    const board = this.#boards.get(key) ?? {
      query: whole,
      bell: new Bell(),
      top: this.#top(whole),
      watchers: 0,
    };
    board.watchers += 1;
    this.#boards.set(key, board);
    this.#polling ??= this.#poll();
    return board;
  }

  #leave(board: Board): void {
    board.watchers -= 1;
    if (board.watchers === 0) this.#boards.delete(keyOf(board.query));
    if (this.#boards.size > 0) return;
    this.#polling?.abort();
    this.#polling = undefined;
  }

  #poll(): AbortController {
    const polling = new AbortController();
    const { signal } = polling;
    const loop = async () => {
      while (!signal.aborted) {
        const seen = this.#hint.rings;
        await delay(1_000 / MAX_CHANGES, undefined, { signal }).catch(() => {});
        const slow = new AbortController();
        const timer = setTimeout(() => slow.abort(), POLL_INTERVAL);
        await this.#hint.wait(seen, AbortSignal.any([signal, slow.signal]));
        clearTimeout(timer);
        if (signal.aborted) return;
        await Promise.all(this.#boards.values().map((board) => this.#refresh(board)));
      }
    };
    void loop();
    return polling;
  }

  async #refresh(board: Board): Promise<void> {
    try {
      const before = await Promise.resolve(board.top).catch(() => undefined);
      const top = await this.#top(board.query);
      board.top = top;
      if (!before || textOf(before.products) !== textOf(top.products)) board.bell.ring();
    } catch (error) {
      this.#onError(error);
    }
  }
}

function textOf(products: Top["products"]): string {
  return JSON.stringify(products, (_, value) => (typeof value === "bigint" ? String(value) : value));
}
