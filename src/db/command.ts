/**
 * What a verb gives to the database: the rows it touches, and a decision about them. The decision neither waits nor
 * reads: it gets everything loaded, changes entities, and answers. So it can run again after a conflict, and together
 * with other decisions in one transaction, without knowing of either.
 */
import type { DomainError } from "../error.ts";

/** The class of a stored row. */
export type RowClass<E extends object> = new (...args: never[]) => E;

/** A row that has a refusal of its own for when it is not there. */
export type EntityClass<E extends object, K extends object> = RowClass<E> & { notFound(key: K): DomainError };

/** Equality on columns of the entity: its primary key, or the part of it that the aggregate owns. */
export type Key<E> = { readonly [P in keyof E]?: E[P] & (string | number) };

/** Rows that a command needs loaded, and on which it must not run at the same time as another. */
export type Touch = Readonly<{
  entity: RowClass<object>;
  key: Readonly<Record<string, string | number>>;
  /** The columns of the key, in one order. */
  shape: readonly string[];
  /** The same text for the same rows. */
  id: string;
  /** Other processes may count on it at the same time. */
  shared?: true;
}>;

/** The shapes by which rows of each entity were asked for: few. */
const shapes = new WeakMap<RowClass<object>, (readonly string[])[]>();

function fits(shape: readonly string[], key: object): boolean {
  let columns = 0;
  for (const column in key) {
    if (!shape.includes(column)) return false;
    columns += 1;
  }
  return columns === shape.length;
}

/** Column names by which rows of an entity are asked for, in one order: the same array for the same columns. */
export function shapeOf(entity: RowClass<object>, key: object): readonly string[] {
  let known = shapes.get(entity);
  if (!known) {
    known = [];
    shapes.set(entity, known);
  }
  for (const shape of known) if (fits(shape, key)) return shape;
  const shape = Object.keys(key).sort();
  known.push(shape);
  return shape;
}

/** The same text for the same values of these columns. */
export function idOf(entity: RowClass<object>, key: object, shape: readonly string[]): string {
  let id = entity.name;
  // No stored text holds a NUL, so that none can look like two values.
  for (const column of shape) id += `\0${column}\0${(key as Record<string, unknown>)[column]}`;
  return id;
}

/** Names rows of one entity by columns: `touch(Variant, { id })`. */
export function touch<E extends object>(entity: RowClass<E>, key: Key<E>): Touch {
  const shape = shapeOf(entity, key);
  return { entity, key: key as Touch["key"], shape, id: idOf(entity, key, shape) };
}

/**
 * Names rows of which the decision at most counts the counters up or down, and tells nobody what they are then: other
 * processes may do the same at the same time, and what each has added is added up.
 */
export function share<E extends object>(entity: RowClass<E>, key: Key<E>): Touch {
  return { ...touch(entity, key), shared: true };
}

/** The state that a decision works on. Only rows that the command touches are there. */
export interface Tx {
  /** When this attempt started, the same for the whole decision. */
  readonly now: Date;
  /** The row, or the entity's own NOT_FOUND. */
  get<E extends object, K extends Key<E>>(entity: EntityClass<E, K>, key: K): E;
  /** The row, or undefined. */
  find<E extends object>(entity: RowClass<E>, key: Key<E>): E | undefined;
  /** All rows with that key, those added by this decision included. */
  list<E extends object>(entity: RowClass<E>, key: Key<E>): readonly E[];
  /** Stores a new row. */
  add(entity: object): void;
  /** Deletes a row. */
  remove(entity: object): void;
}

/** Plain reads that find out which rows a command touches, before its transaction. */
export type Plan = () => Promise<readonly Touch[]>;

export type Command<R> = {
  /**
   * Known from the request, or read first. Rows that only turn out to be needed inside are not there: the decision then
   * fails, and the plan is made again.
   */
  readonly touches: readonly Touch[] | Plan;
  /** Synchronous and without outside effects. What it throws refuses the command, and nothing of it is written. */
  decide(tx: Tx): R;
};

/** One write call of a caller: what makes it the same call when it is sent again. */
export interface Write {
  /** Whose request ids these are: the subject of the token. */
  readonly scope: string;
  /** `shop.v1.OrderService/PlaceOrder` */
  readonly rpc: string;
  readonly requestId: string;
  /** SHA-256 of the request. */
  readonly fingerprint: Uint8Array;
  /** Fires when the caller has gone or its deadline has passed. */
  readonly signal: AbortSignal;
  /** The response to store, made from what the decision returned. */
  encode(result: unknown): Uint8Array;
}

/** Thrown by a verb whose request was answered before: not a failure, but the first answer once more. */
export class Replayed extends Error {
  override readonly name = "Replayed";
  readonly response: Uint8Array;

  constructor(response: Uint8Array) {
    super("this request was answered before");
    this.response = response;
  }
}
