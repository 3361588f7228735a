/** A batch behind another one that is decided twice, because somebody was refused: each time on the rows as they were. */
import { expect, test } from "vitest";
import { LedgerEntry, Wallet } from "../../src/balance/balance.entity.ts";
import { type Command, Replayed, type Tx, touch } from "../../src/db/command.ts";
import { DomainError } from "../../src/error.ts";
import { createDatabase } from "../support/database.ts";
import { endsOf, lead, openShop, send, takeAnd } from "./chain.ts";
import { addWallet, callOf, holdVariant, stockOf, takeOne } from "./harness.ts";

const url = await createDatabase();

const spend = (userId: string, amount: bigint): Command<string> => ({
  touches: [touch(Wallet, { userId })],
  decide: (tx: Tx) => {
    const wallet = tx.get(Wallet, { userId });
    tx.add(wallet.pay(amount, "test", tx.now));
    return String(wallet.balance);
  },
});
const refuse = (userId: string): Command<never> => ({
  touches: [touch(Wallet, { userId })],
  decide: (tx) => {
    tx.get(Wallet, { userId });
    throw new DomainError("ORDER_NOT_CANCELLABLE", "no");
  },
});

test("what one of them has spent is spent once", async () => {
  const { db, seen, ids } = await openShop(url, [100]);
  const userId = await addWallet(db, 100n);
  seen.committed.length = 0;
  const held = await holdVariant(url, ids[0]);
  const first = await lead(db, held, takeAnd(ids[0], spend(userId, 10n)));
  const [second, third] = [send(db, spend(userId, 30n)), send(db, refuse(userId))];
  await expect.poll(() => second.decisions).toBe(2);
  await held.release();
  expect(await endsOf(first, second, third)).toEqual([[99, "90"], "60", "ORDER_NOT_CANCELLABLE"]);
  expect(seen.committed.map(({ size, behind }) => ({ size, behind }))).toEqual([
    { size: 1, behind: false },
    { size: 2, behind: true },
  ]);
  expect(await db.find(Wallet, { userId })).toMatchObject({ balance: 60n, entries: 2n });
});

test("as many get a unit as there are, and the others hear that there is none", async () => {
  const { db, ids } = await openShop(url, [100, 4]);
  const [y, x] = ids;
  const held = await holdVariant(url, y);
  const first = await lead(db, held, takeOne([x, y]));
  const buyers = Array.from({ length: 5 }, () => send(db, takeOne([x])));
  await expect.poll(() => buyers[0]?.decisions).toBe(2);
  await held.release();
  const sold = "INSUFFICIENT_STOCK";
  expect(await endsOf(first, ...buyers)).toEqual([[3, 99], [2], [1], [0], sold, sold]);
  expect(await stockOf(db, x)).toBe(0);
});

test("answers, entries and replays are those of the decisions that were written", async () => {
  const { db, seen, ids } = await openShop(url, [100], { carefulMs: 0 });
  const userId = await addWallet(db, 100n);
  const again = callOf();
  await db.write(again, spend(userId, 10n));
  const held = await holdVariant(url, ids[0]);
  const first = await lead(db, held, takeAnd(ids[0], spend(userId, 10n)));
  const calls = [callOf(), callOf()] as const;
  const batch = [
    send(db, spend(userId, 10n), calls[0]),
    // New as far as the first decisions know: they spend on it.
    send(db, spend(userId, 10n), again),
    send(db, refuse(userId)),
    send(db, spend(userId, 20n), calls[1]),
  ];
  await expect.poll(() => batch[0]?.decisions).toBe(2);
  await held.release();
  const ends = await endsOf(first, ...batch);
  expect(ends).toEqual([[99, "80"], "70", expect.any(Replayed), "ORDER_NOT_CANCELLABLE", "50"]);
  expect(Buffer.from((ends[2] as Replayed).response).toString()).toBe('"90"');
  expect(seen.committed.at(-1)).toMatchObject({ size: 4, behind: true });
  const stored = await endsOf(...calls.map((call, index) => send(db, spend(userId, index ? 20n : 10n), call)));
  const responses = stored.map((one) => Buffer.from((one as Replayed).response).toString());
  expect(responses).toEqual(['"70"', '"50"']);
  const seqs = (await db.list(LedgerEntry, { userId })).map(({ seq }) => Number(seq)).sort((a, b) => a - b);
  expect(seqs).toEqual([1, 2, 3, 4]);
  expect(await db.find(Wallet, { userId })).toMatchObject({ balance: 50n, entries: 4n });
});
