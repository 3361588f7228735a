import { AsyncLocalStorage } from "node:async_hooks";
import { Client } from "pg";

/** How long a statement may take, in milliseconds. */
const limits = new AsyncLocalStorage<number>();

/**
 * Runs `work`. Of the statements that it sends through the ORM, each has to answer within `ms` milliseconds: one that does
 * not fails, and its connection is gone. A database that drops packets is noticed by the operating system after a quarter
 * of an hour only.
 */
export function withSilenceLimit<T>(ms: number, work: () => Promise<T>): Promise<T> {
  return limits.run(ms, work);
}

type Query = (...args: unknown[]) => unknown;

/**
 * A connection that keeps to it. The driver's own `query_timeout` fails the query and keeps the connection: its transaction
 * would stay open, and Kysely would wait for the answer to a rollback behind it.
 */
export class LimitedClient extends Client {
  override query = ((...args: unknown[]) => {
    const answer = (super.query as Query).apply(this, args);
    const ms = limits.getStore();
    if (ms === undefined || !(answer instanceof Promise)) return answer;
    const timer = setTimeout(() => destroy(this), ms);
    return answer.finally(() => clearTimeout(timer));
  }) as Client["query"];
}

/** Of a connection: all that waits for it fails at once. Its own `end` would wait for answers, and for the other side to end. */
export function destroy(client: Client): void {
  (client as unknown as { connection: { stream: { destroy(): void } } }).connection.stream.destroy();
}
