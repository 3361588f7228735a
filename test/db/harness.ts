/** Databases under test with everything that happens in them written down, and rows that hold batches up. */
import { randomUUID, randomUUIDv7 } from "node:crypto";
import { Client, type Pool } from "pg";
import { expect, onTestFinished, vi } from "vitest";
import { entities } from "../../src/app.ts";
import { Wallet } from "../../src/balance/balance.entity.ts";
import type { BatchObserver } from "../../src/db/batch.ts";
import { type Command, type Tx, touch, type Write } from "../../src/db/command.ts";
import { Database, type DatabaseOptions } from "../../src/db/database.ts";
import { createOrm, poolOf } from "../../src/db/orm.ts";
import { Product, Variant } from "../../src/product/product.entity.ts";

type Args<K extends keyof BatchObserver> = Parameters<NonNullable<BatchObserver[K]>>[0];

/** What a database has told its observer. */
export type Seen = {
  committed: Args<"committed">[];
  conflicted: Args<"conflicted">[];
  split: Args<"split">[];
  waited: number[];
};

export type Opened = Readonly<{ db: Database; pool: Pool; seen: Seen }>;

/** What tests that hold rows for a moment count on, however slow the machine is. */
const LOCK_TIMEOUT_MS = 5_000;

/** Opens the database as one process of the service would, only more patient with locked rows. Closed after the test. */
export async function open(url: string, options: DatabaseOptions = {}, poolSize = 4): Promise<Opened> {
  const orm = await createOrm({ url, poolSize, entities });
  onTestFinished(() => orm.close());
  const seen: Seen = { committed: [], conflicted: [], split: [], waited: [] };
  const observer: BatchObserver = {
    committed: (batch) => void seen.committed.push(batch),
    conflicted: (batch) => void seen.conflicted.push(batch),
    split: (batch) => void seen.split.push(batch),
    waited: (ms) => void seen.waited.push(ms),
  };
  return {
    db: await Database.open(orm, { observer, lockTimeoutMs: LOCK_TIMEOUT_MS, ...options }),
    pool: await poolOf(orm),
    seen,
  };
}

/** A connection that is nobody's but the test's. */
export async function connect(url: string): Promise<Client> {
  const client = new Client({ connectionString: url });
  await client.connect();
  onTestFinished(() => client.end());
  return client;
}

/** A foreign transaction that has locked a row: whoever writes the row waits until it is released. */
export type Hold = Readonly<{
  /** Resolves when so many transactions of this database wait for a lock. */
  waiting(transactions: number): Promise<number[]>;
  release(): Promise<void>;
}>;

/** Locks one row, or what else `lock` locks, until released. */
export async function hold(url: string, lock: string, ...values: unknown[]): Promise<Hold> {
  const holder = await connect(url);
  // Of its own: inside a transaction, pg_stat_activity shows one moment for ever.
  const watcher = await connect(url);
  await holder.query("begin");
  await holder.query(lock, values);
  return {
    waiting: (transactions) =>
      vi.waitFor(
        async () => {
          const { rows } = await watcher.query<{ pid: number }>(
            "select pid from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'",
          );
          expect(rows).toHaveLength(transactions);
          return rows.map(({ pid }) => pid);
        },
        { timeout: 10_000, interval: 5 },
      ),
    release: async () => void (await holder.query("commit")),
  };
}

export function holdVariant(url: string, id: string): Promise<Hold> {
  return hold(url, "select 1 from variant where id = $1 for update", id);
}

/** Stores variants of a product with these stocks and returns their ids: ascending, in the order of the stocks. */
export async function addVariants(db: Database, ...stocks: number[]): Promise<string[]> {
  const product = Product.create(randomUUIDv7(), "product", "", new Date());
  // Those of one millisecond come in any order.
  const ids = stocks.map(() => randomUUIDv7()).sort();
  const variants = ids.map((id, index) =>
    Variant.create(product, index + 1, { id, name: "variant", price: 10n, stock: stocks[index] as number }),
  );
  await db.apply({ touches: [], decide: (tx) => [product, ...variants].forEach((row) => void tx.add(row)) });
  return ids;
}

/** Stores a wallet and returns its user's id. */
export async function addWallet(db: Database, balance: bigint): Promise<string> {
  const wallet = Object.assign(Wallet.open(randomUUIDv7()), { balance });
  await db.apply({ touches: [], decide: (tx) => tx.add(wallet) });
  return wallet.userId;
}

export async function stockOf(db: Database, id: string): Promise<number | undefined> {
  return (await db.find(Variant, { id }))?.stock;
}

export function stocksOf(db: Database, ids: readonly string[]): Promise<(number | undefined)[]> {
  return Promise.all(ids.map((id) => stockOf(db, id)));
}

/** Takes one unit of each variant, and calls `decided` when it is decided. */
export function takeOne(ids: readonly string[], decided: (tx: Tx) => void = () => {}): Command<number[]> {
  return {
    touches: ids.map((id) => touch(Variant, { id })),
    decide: (tx) => {
      decided(tx);
      return ids.map((id) => {
        const variant = tx.get(Variant, { id });
        variant.take(1);
        return variant.stock;
      });
    },
  };
}

/** A call of its own, or another one with the same request id. The response is the result as JSON. */
export function callOf(requestId: string = randomUUID(), content = "", signal?: AbortSignal): Write {
  return {
    scope: "caller",
    rpc: "shop.v1.Test/Write",
    requestId,
    fingerprint: Buffer.from(content),
    signal: signal ?? new AbortController().signal,
    encode: (result) => Buffer.from(JSON.stringify(result ?? null)),
  };
}
