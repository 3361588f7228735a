/** Statements that go to Postgres together, and all that comes back: the driver's own queries are one statement each. */
import { hash } from "node:crypto";
import type { Connection, Submittable } from "pg";
import { isStalePlan } from "./conflict.ts";
import { driverTypes, type Statement } from "./statement.ts";

/** A database that says nothing for so long, in milliseconds, is gone, and the connection with it. */
const SILENCE = 15_000;

/** Rows as arrays of column values. */
export type ResultRows = unknown[][];

type Parser = (text: string) => unknown;
type Field = Readonly<{ dataTypeID: number }>;

/** A statement as a connection has it: under which name, and how its rows are read. */
type Prepared = Readonly<{ name: string; parsers: readonly Parser[] }>;

/** What a connection has prepared. `stale`: names that nobody uses, under which it may have something. */
type Preparations = { readonly known: Map<string, Prepared>; names: number; stale: string[] };
const byConnection = new WeakMap<object, Preparations>();

function preparedOn(connection: object): Preparations {
  const prepared = byConnection.get(connection) ?? { known: new Map(), names: 0, stale: [] };
  byConnection.set(connection, prepared);
  return prepared;
}

const digests = new Map<string, string>();

function digestOf(text: string): string {
  const digest = digests.get(text) ?? hash("sha256", text).slice(0, 24);
  digests.set(text, digest);
  return digest;
}

const parserOf = ({ dataTypeID }: Field) => driverTypes.getTypeParser(dataTypeID, "text") as Parser;

/** What @types/pg does not let one call as the driver does. */
type Wire = {
  [send in "parse" | "bind" | "execute" | "describe" | "close"]: (message: object) => void;
} & { sync(): void };

/**
 * Statements with one Sync behind them, which is one transaction when they begin none themselves. When one fails, Postgres
 * skips all behind it, the COMMIT too. That saves what a Sync costs for each: an answer, a write to the socket, a
 * wake-up. https://www.postgresql.org/docs/18/protocol-flow.html#PROTOCOL-FLOW-PIPELINING
 *
 * The driver calls its methods: an object like this is what it also gets from pg-cursor.
 */
export class Exchange implements Submittable {
  // The driver's name for it: who waits longer is told so, and the connection ends.
  readonly query_timeout = SILENCE;
  readonly statements: readonly Statement[];
  /** The rows of each statement; it fails with the failure of the statement `at` work. */
  readonly results: Promise<ResultRows[]>;
  /** The driver puts itself between, for the timeout. */
  callback: (error: unknown) => void;
  /** By index, the names under which statements were prepared with this. */
  readonly #fresh = new Map<number, string>();
  readonly #done: ResultRows[] = [];
  #prepared: Preparations | undefined;
  #unreadable: unknown;
  #rows: ResultRows = [];
  #parsers: readonly Parser[] = [];

  constructor(statements: readonly Statement[]) {
    this.statements = statements;
    const { promise, resolve, reject } = Promise.withResolvers<ResultRows[]>();
    this.results = promise;
    this.callback = (error) => (error === undefined ? resolve(this.#done) : reject(error));
  }

  /** The index of the statement that was or is at work. */
  get at(): number {
    return this.#done.length;
  }

  submit(connection: Connection): void {
    const prepared = preparedOn(connection);
    this.#prepared = prepared;
    const wire = connection as unknown as Wire;
    for (const name of prepared.stale.splice(0)) wire.close({ type: "S", name });
    const fresh = new Map<string, string>();
    for (const [index, { name: key, text, values }] of this.statements.entries()) {
      const known = key && (prepared.known.get(key)?.name ?? fresh.get(key));
      // Never a name that an attempt that failed may have left behind; nor one that means another statement on another
      // connection, since a proxy may exchange them.
      const name = known || (key && `s${++prepared.names}_${digestOf(text)}`);
      if (!known) {
        fresh.set(key, name);
        this.#fresh.set(index, name);
        wire.parse({ name, text });
      }
      wire.bind({ statement: name, values });
      if (!known) wire.describe({ type: "P", name: "" });
      wire.execute({});
    }
    wire.sync();
    this.#begin();
  }

  handleRowDescription({ fields }: { fields: readonly Field[] }): void {
    this.#parsers = fields.map(parserOf);
  }

  handleDataRow({ fields }: { fields: readonly (string | null)[] }): void {
    try {
      this.#rows.push(fields.map((text, index) => (text === null ? null : this.#parsers[index]?.(text))));
    } catch (error) {
      // Not to the driver: it would go on to whoever reads the socket, and end the process.
      this.#unreadable ??= error;
    }
  }

  handleCommandComplete({ text: tag }: { text: string }): void {
    const name = this.#fresh.get(this.at);
    const { name: key, text } = this.statements[this.at] ?? {};
    if (text === "commit" && tag !== "COMMIT") this.#unreadable ??= new Error(`the answer to a COMMIT was ${tag}`);
    if (name && key && this.#prepared) {
      // The exchange in front may have prepared it as well.
      if (this.#prepared.known.has(key)) this.#prepared.stale.push(name);
      else this.#prepared.known.set(key, { name, parsers: this.#parsers });
    }
    this.#done.push(this.#rows);
    this.#begin();
  }

  handleReadyForQuery(): void {
    this.callback(this.#unreadable);
  }

  handleError(error: unknown): void {
    const key = this.statements[this.at]?.name ?? "";
    const known = this.#prepared?.known.get(key)?.name;
    // It was prepared, or just that has failed.
    const useless = this.#fresh.get(this.at) ?? (isStalePlan(error) ? known : undefined);
    if (useless) this.#prepared?.stale.push(useless);
    if (useless === known) this.#prepared?.known.delete(key);
    // What fails behind the last statement fails nothing any more: its COMMIT, if it had one, was answered.
    this.callback(this.at === this.statements.length ? this.#unreadable : error);
  }

  #begin(): void {
    this.#rows = [];
    const key = this.statements[this.at]?.name;
    this.#parsers = (key && this.#prepared?.known.get(key)?.parsers) || [];
  }
}
