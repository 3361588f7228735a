import type { Writable } from "node:stream";
import type { Pool, PoolClient, QueryArrayConfig, QueryArrayResult } from "pg";
import { Unreachable } from "./conflict.ts";
import { driverTypes, type Statement } from "./statement.ts";

/** A database that says nothing for so long, in milliseconds, is gone, and the connection with it. */
const SILENCE = 15_000;

/** What the driver gets: rows as arrays, its own parsers, and an end to waiting. */
export function queryOf({ text, name, values = [] }: Partial<Statement> & { text: string }): QueryArrayConfig {
  const config = { text, values: [...values], rowMode: "array" as const, types: driverTypes, query_timeout: SILENCE };
  return name === undefined ? config : { ...config, name };
}

/** Rows as arrays of column values. */
export type ResultRows = unknown[][];

/**
 * One connection for one transaction after the other. Statements are sent at once, one behind the other, without waiting
 * in between; a whole transaction may be sent behind one that has not ended.
 */
export class Session {
  readonly #client: PoolClient;
  #users = 0;
  #broken: Error | undefined;

  private constructor(client: PoolClient) {
    this.#client = client;
  }

  /** Runs `work` on a connection of the pool, which must be set to pipeline. @throws Unreachable when there is none */
  static async run<T>(pool: Pool, work: (session: Session) => Promise<T>): Promise<T> {
    const client = await pool.connect().catch((error: unknown) => {
      throw new Unreachable(error);
    });
    return new Session(client).use(work);
  }

  /**
   * Runs `work` on this connection, which goes back to the pool when nobody uses it any more. A transaction that failing
   * work leaves open is rolled back; one that was sent whole meanwhile, by another user, is in front of that or behind it.
   */
  async use<T>(work: (session: Session) => Promise<T>): Promise<T> {
    this.#users += 1;
    try {
      return await work(this);
    } catch (error) {
      await this.#query("rollback").catch((failure: Error) => {
        this.#broken = failure;
      });
      throw error;
    } finally {
      this.#users -= 1;
      if (this.#users === 0) this.#client.release(this.#broken);
    }
  }

  /**
   * Sends statements together and returns the rows of each. When one fails, so do all behind it, and what is thrown is
   * the failure of the first: a COMMIT behind a failed statement rolls back. `explain` may make another error of it.
   */
  async send(
    statements: readonly (Statement | string)[],
    explain: (error: unknown, index: number) => unknown = (error) => error,
  ): Promise<ResultRows[]> {
    const results = await Promise.allSettled(this.#together(() => statements.map((one) => this.#query(one))));
    return results.map((result, index) => {
      if (result.status === "rejected") throw explain(result.reason, index);
      return result.value.rows;
    });
  }

  /** What is sent meanwhile leaves in one write to the socket: one for each statement is a tenth of the processor time. */
  #together<T>(send: () => T): T {
    const { stream } = (this.#client as unknown as { connection: { stream: Writable } }).connection;
    stream.cork();
    try {
      return send();
    } finally {
      stream.uncork();
    }
  }

  #query(statement: Statement | string): Promise<QueryArrayResult<unknown[]>> {
    return this.#client.query(queryOf(typeof statement === "string" ? { text: statement } : statement));
  }
}
