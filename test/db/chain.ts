/** Commands that run behind a batch which is still being written. */
import { expect, vi } from "vitest";
import { type Command, type Tx, touch, type Write } from "../../src/db/command.ts";
import type { Database, DatabaseOptions } from "../../src/db/database.ts";
import { Variant } from "../../src/product/product.entity.ts";
import { addVariants, callOf, type Hold, hold, holdVariant, type Opened, open, takeOne } from "./harness.ts";

/** A command on its way, and how often it has been decided. */
export type Sent<R> = { readonly answer: Promise<R>; decisions: number };

/** Sends a command. */
export function send<R>(db: Database, command: Command<R>, call: Write = callOf(), decided = () => {}): Sent<R> {
  const decide = (tx: Tx) => {
    sent.decisions += 1;
    decided();
    return command.decide(tx);
  };
  const sent = { answer: db.write(call, { ...command, decide }), decisions: 0 };
  // A refusal is looked at when the test gets there.
  sent.answer.catch(() => {});
  return sent;
}

/** Sends a command whose batch then hangs in its write at a row that is held, and leads whoever shares other rows. */
export async function lead<R>(db: Database, held: Hold, command: Command<R>, call?: Write): Promise<Sent<R>> {
  const sent = send(db, command, call);
  await held.waiting(1);
  return sent;
}

/** Sends a command and returns when it was decided: if it is written behind another batch, it has been sent by then. */
export async function follow<R>(db: Database, command: Command<R>, call?: Write): Promise<Sent<R>> {
  const { promise: decided, resolve } = Promise.withResolvers<void>();
  const sent = send(db, command, call, resolve);
  await decided;
  return sent;
}

/** Names in the order in which these are answered or refused. */
export function orderOf(named: Record<string, Sent<unknown>>): string[] {
  const order: string[] = [];
  for (const [name, { answer }] of Object.entries(named)) {
    const note = () => void order.push(name);
    answer.then(note, note);
  }
  return order;
}

/** How each of these has ended: its value, or why it was refused. */
export async function endsOf(...sent: Sent<unknown>[]): Promise<unknown[]> {
  const ends = await Promise.allSettled(sent.map(({ answer }) => answer));
  return ends.map((end) => (end.status === "fulfilled" ? end.value : (end.reason.reason ?? end.reason)));
}

/** A process and variants with these stocks, in the order in which a batch writes them. */
export async function openShop(
  url: string,
  stocks: number[],
  options: DatabaseOptions = {},
): Promise<Opened & { ids: [string, string, string, string] }> {
  // So many, with connections that are there already, that whoever may run does.
  const opened = await open(url, { maxRunning: 4, ...options }, 6);
  const ids = await addVariants(opened.db, ...stocks);
  const clients = await Promise.all(Array.from({ length: 4 }, () => opened.pool.connect()));
  for (const client of clients) client.release();
  // A connection that knows all statements: where one has to be prepared first, a failure in front fails it, too.
  await opened.db.write(callOf(), takeOne(await addVariants(opened.db, 1)));
  opened.seen.committed.length = 0;
  opened.seen.waited.length = 0;
  return { ...opened, ids: ids as [string, string, string, string] };
}

/** Foreign transactions that make a batch over two rows, the first of which it writes first, fail once and hang again. */
export async function failOnce(url: string, { seen }: Opened, first: string, second: string) {
  const change = await hold(url, "update variant set stock = stock - 5, version = version + 1 where id = $1", first);
  const again = await holdVariant(url, second);
  return {
    /** The batch hangs here first. */
    change,
    /** Returns when it has failed, and hangs in its second attempt. */
    async fail(): Promise<Hold> {
      await change.release();
      await vi.waitFor(() => expect(seen.conflicted).toHaveLength(1), { timeout: 10_000, interval: 5 });
      await again.waiting(1);
      return again;
    },
  };
}

/** Returns when all that can run does: others have gone through the queue and the database behind it. */
export async function settle({ db, seen }: Opened, started = 0): Promise<void> {
  await vi.waitFor(() => expect(seen.waited.length).toBeGreaterThanOrEqual(started), { timeout: 10_000, interval: 5 });
  // What has arrived in this turn would take the others with it.
  await new Promise((resolve) => setImmediate(resolve));
  for (let round = 0; round < 3; round += 1) await db.apply({ touches: [], decide: () => {} });
}

/** Takes one unit of a variant and does more, on more rows. */
export function takeAnd<R>(id: string, more: Command<R>): Command<[number, R]> {
  return {
    touches: [touch(Variant, { id }), ...(more.touches as [])],
    decide: (tx) => {
      const variant = tx.get(Variant, { id });
      variant.take(1);
      return [variant.stock, more.decide(tx)];
    },
  };
}
