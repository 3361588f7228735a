import type { Writable } from "node:stream";
import type { Pool, PoolClient } from "pg";
import { Unreachable } from "./conflict.ts";
import { Exchange, type ResultRows } from "./exchange.ts";
import type { Statement } from "./statement.ts";

/** A statement that takes nothing, prepared like all others under a name that is its text. */
const plain = (text: string): Statement => ({ name: text, text, values: [] });

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
      await this.send(["rollback"]).catch((failure: Error) => {
        this.#broken = failure;
      });
      throw error;
    } finally {
      this.#users -= 1;
      if (this.#users === 0) this.#client.release(this.#broken);
    }
  }

  /**
   * Sends statements together and returns the rows of each. When one fails, none behind it is carried out. `explain` may
   * make another error of what has failed.
   */
  async send(
    statements: readonly (Statement | string)[],
    explain: (error: unknown, index: number) => unknown = (error) => error,
  ): Promise<ResultRows[]> {
    const exchange = new Exchange(statements.map((one) => (typeof one === "string" ? plain(one) : one)));
    this.#submit(exchange);
    try {
      return await exchange.results;
    } catch (error) {
      throw explain(error, exchange.at);
    }
  }

  /** In one write to the socket: one for each message is a tenth of the processor time. */
  #submit(exchange: Exchange): void {
    const { stream } = (this.#client as unknown as { connection: { stream: Writable } }).connection;
    stream.cork();
    try {
      this.#client.query(exchange);
    } finally {
      stream.uncork();
    }
  }
}
