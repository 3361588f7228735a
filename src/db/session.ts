import type { Pool, PoolClient, QueryArrayConfig, QueryArrayResult } from "pg";
import { driverTypes, type Statement } from "./table.ts";

/** A database that says nothing for so long, in milliseconds, is gone, and the connection with it. */
const SILENCE = 15_000;

/** What the driver gets: rows as arrays, its own parsers, and an end to waiting. */
export function queryOf({ text, name, values = [] }: Partial<Statement> & { text: string }): QueryArrayConfig {
  const config = { text, values: [...values], rowMode: "array" as const, types: driverTypes, query_timeout: SILENCE };
  return name === undefined ? config : { ...config, name };
}

/** Rows as arrays of column values. */
export type ResultRows = unknown[][];

/** One connection for one transaction. Statements are sent at once, one behind the other, without waiting in between. */
export class Session {
  readonly #client: PoolClient;

  private constructor(client: PoolClient) {
    this.#client = client;
  }

  /** Runs `work` on a connection of the pool, which must be set to pipeline. A transaction left open is rolled back. */
  static async run<T>(pool: Pool, work: (session: Session) => Promise<T>): Promise<T> {
    const client = await pool.connect();
    let broken: Error | undefined;
    try {
      return await work(new Session(client));
    } catch (error) {
      await client.query(queryOf({ text: "rollback" })).catch((failure: Error) => {
        broken = failure;
      });
      throw error;
    } finally {
      client.release(broken);
    }
  }

  /**
   * Sends statements together and returns the rows of each. When one fails, so do all behind it, and what is thrown is
   * the failure of the first: a COMMIT behind a failed statement rolls back.
   */
  async send(statements: readonly (Statement | string)[]): Promise<ResultRows[]> {
    const results = await Promise.allSettled(statements.map((statement) => this.#query(statement)));
    return results.map((result) => {
      if (result.status === "rejected") throw result.reason;
      return result.value.rows;
    });
  }

  #query(statement: Statement | string): Promise<QueryArrayResult<unknown[]>> {
    return this.#client.query(queryOf(typeof statement === "string" ? { text: statement } : statement));
  }
}
