/** Long chains of batches on few rows: in one process, and in two that meet on them. */
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { type Command, touch } from "../../src/db/command.ts";
import { Variant } from "../../src/product/product.entity.ts";
import { createDatabase } from "../support/database.ts";
import { addVariants, callOf, type Opened, open, stocksOf, takeOne } from "./harness.ts";

const url = await createDatabase();
const STOCK = 1_000_000;

type Line = Readonly<{ variant: number; quantity: number }>;

const line = fc.record({ variant: fc.nat({ max: 2 }), quantity: fc.integer({ min: 1, max: 5 }) });
const lines = fc.uniqueArray(line, { minLength: 1, maxLength: 3, selector: ({ variant }) => variant });

/** Takes the units of each line, and returns the stocks that are left. */
function take(ids: readonly string[], wanted: readonly Line[]): Command<number[]> {
  return {
    touches: wanted.map(({ variant }) => touch(Variant, { id: ids[variant] as string })),
    decide: (tx) =>
      wanted.map(({ variant: index, quantity }) => {
        const variant = tx.get(Variant, { id: ids[index] as string });
        variant.take(quantity);
        return variant.stock;
      }),
  };
}

const behind = ({ seen }: Opened) => seen.committed.filter((batch) => batch.behind).length;

describe.each([2, 8])("2,000 commands over three rows, %i batches at a time", (maxRunning) => {
  test("run as if one after the other, and are answered in this order", async () => {
    const opened = await open(url, { maxBatch: 4, maxRunning }, 10);
    const { db, seen } = opened;
    const ids = await addVariants(db, STOCK, STOCK, STOCK);
    const history = fc.sample(lines, 2_000);
    const stocks = ids.map(() => STOCK);
    const expected = history.map((wanted) =>
      wanted.map(({ variant, quantity }) => {
        const left = (stocks[variant] as number) - quantity;
        stocks[variant] = left;
        return left;
      }),
    );
    // For each row, the stocks of which its callers hear, in the order in which they hear of them.
    const heard = ids.map((): number[] => []);
    const answers = await Promise.all(
      history.map(async (wanted) => {
        const left = await db.write(callOf(), take(ids, wanted));
        wanted.forEach(({ variant }, index) => void heard[variant]?.push(left[index] as number));
        return left;
      }),
    );
    expect(answers).toEqual(expected);
    expect(heard).toEqual(heard.map((lefts) => lefts.toSorted((a, b) => b - a)));
    expect(await stocksOf(db, ids)).toEqual(stocks);
    expect([seen.conflicted, seen.split]).toEqual([[], []]);
    expect(seen.committed.every(({ attempts, locked }) => attempts === 1 && !locked)).toBe(true);
    expect(behind(opened)).toBeGreaterThan(0);
  });
});

/** Two processes, each with a chain under way on a row of its own, meet on two rows. Returns what their callers heard. */
async function meet(p: Opened, q: Opened) {
  const [hotP = "", hotQ = "", ...hot] = await addVariants(p.db, STOCK, STOCK, STOCK, STOCK);
  const heard = hot.map((): number[] => []);
  const caller = async ({ db }: Opened, own: string, number: number) => {
    for (let round = 0; round < 4; round += 1) await db.write(callOf(), takeOne([own]));
    for (let round = 0; round < 10; round += 1) {
      const wanted = (number + round) % 3 === 0 ? hot : [hot[(number + round) % 2] as string];
      const stocks = await db.write(callOf(), takeOne(wanted));
      wanted.forEach((id, index) => void heard[hot.indexOf(id)]?.push(stocks[index] as number));
    }
  };
  const callers = Array.from({ length: 24 }, (_, number) => [caller(p, hotP, number), caller(q, hotQ, number)]);
  await Promise.all(callers.flat());
  expect(await stocksOf(p.db, [hotP, hotQ])).toEqual([STOCK - 96, STOCK - 96]);
  return { heard, stocks: await stocksOf(p.db, hot) };
}

test("two processes with chains on the same rows lose no unit, and nobody hears of it", async () => {
  // Anew each time: who has met another one locks its rows for a while, and leads nobody.
  for (let meeting = 0; meeting < 3; meeting += 1) {
    const processes = [await open(url, { maxBatch: 4 }), await open(url, { maxBatch: 4 })] as const;
    const { heard, stocks } = await meet(...processes);
    // Each answer is another state of the row: none was given twice, and none left out.
    const units = heard.map((lefts) => lefts.length);
    expect(heard.map((lefts) => new Set(lefts).size)).toEqual(units);
    expect(stocks).toEqual(units.map((sold) => STOCK - sold));
  }
});
