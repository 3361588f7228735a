import { Bell } from "../outbox/bell.ts";
import type { Top, TopProduct, TopQuery } from "./top.ts";

/** What those who watch with one limit get: one object for all of them. `turn`: of the board, when it became another one. */
export type Answer = Readonly<{ top: Top; turn: number }>;

/** The answers to one question: a shorter list is the beginning of the longest. */
export class Board {
  /** Of the longest list. */
  readonly query: TopQuery;
  /** Rings when an answer has changed. */
  readonly bell = new Bell();
  /** How long it took to send what the last look at it has found, in milliseconds. */
  sendingMs = 0;
  #longest: Top | undefined;
  #turn = 0;
  readonly #answers = new Map<number, Answer>();
  #failure: unknown;

  constructor(query: TopQuery) {
    this.query = query;
  }

  /** Whether there is an answer. */
  get answered(): boolean {
    return this.#longest !== undefined;
  }

  /** Takes a newer answer. Returns whether anybody's has changed, so that the bell is to be rung. */
  update(top: Top): boolean {
    const from = this.#longest ? firstDifference(this.#longest.products, top.products) : 0;
    let changed = !this.#longest;
    this.#longest = top;
    this.#turn += 1;
    for (const [limit, { turn }] of this.#answers) {
      changed ||= from < limit;
      this.#answers.set(limit, { top: beginningOf(top, limit), turn: from < limit ? this.#turn : turn });
    }
    return changed;
  }

  /** Tells those who wait for the first answer why they don't get it. */
  fail(failure: unknown): void {
    this.#failure = failure;
    this.bell.ring();
  }

  /** The answer as it is; undefined before the first one. @throws what has failed, when there was none before */
  answer(limit: number): Answer | undefined {
    if (!this.#longest && this.#failure !== undefined) throw this.#failure;
    if (!this.#longest) return undefined;
    const answer = this.#answers.get(limit) ?? { top: beginningOf(this.#longest, limit), turn: this.#turn };
    this.#answers.set(limit, answer);
    return answer;
  }
}

function beginningOf({ products, asOf }: Top, limit: number): Top {
  return { products: products.slice(0, limit), asOf };
}

/** The index of the first product that is another one, or another number of units; Infinity when there is none. */
function firstDifference(before: readonly TopProduct[], after: readonly TopProduct[]): number {
  for (let index = 0; index < Math.max(before.length, after.length); index += 1) {
    if (!isSame(before[index], after[index])) return index;
  }
  return Number.POSITIVE_INFINITY;
}

function isSame(one: TopProduct | undefined, other: TopProduct | undefined): boolean {
  return (
    one?.productId === other?.productId &&
    one?.variantId === other?.variantId &&
    one?.productName === other?.productName &&
    one?.variantName === other?.variantName &&
    one?.unitsSold === other?.unitsSold
  );
}
