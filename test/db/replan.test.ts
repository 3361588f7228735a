/** Commands whose rows depend on stored data: when that changes between the plan and the decision. */
import { randomUUIDv7 } from "node:crypto";
import { beforeEach, expect, test } from "vitest";
import { Cart, CartItem } from "../../src/cart/cart.entity.ts";
import { Carts } from "../../src/cart/cart.service.ts";
import { type Command, touch } from "../../src/db/command.ts";
import type { Database } from "../../src/db/database.ts";
import { Variant } from "../../src/product/product.entity.ts";
import { User } from "../../src/user/user.entity.ts";
import { createDatabase } from "../support/database.ts";
import { addVariants, callOf, open, type Seen, stocksOf } from "./harness.ts";

const url = await createDatabase();

let db: Database;
let carts: Carts;
let seen: Seen;
let userId: string;
let ids: string[];

beforeEach(async () => {
  ({ db, seen } = await open(url));
  carts = new Carts(db);
  ids = await addVariants(db, ...Array<number>(8).fill(10));
  userId = randomUUIDv7();
  await db.apply({ touches: [], decide: (tx) => tx.add(User.register(userId, "buyer", tx.now)) });
  await put(0);
});

/** Puts the next variant into the cart. */
const put = (index: number) =>
  carts.addItem(callOf(), { userId, variantId: ids[index] as string, quantity: 1, rejectPresent: false });

/** Buys what is in the cart; `meanwhile` runs between the plan and the decision. */
function buyCart(meanwhile: (plan: number) => Promise<unknown>, decided: () => void = () => {}): Command<string[]> {
  let plans = 0;
  return {
    touches: async () => {
      const items = await db.list(CartItem, { userId });
      plans += 1;
      await meanwhile(plans);
      const variants = items.map(({ variantId: id }) => touch(Variant, { id }));
      return [...variants, touch(Cart, { userId }), touch(CartItem, { userId })];
    },
    decide: (tx) => {
      decided();
      const items = [...tx.list(CartItem, { userId })];
      for (const item of items) {
        tx.remove(item);
        tx.get(Variant, { id: item.variantId }).take(item.quantity);
      }
      tx.find(Cart, { userId })?.removed();
      return items.map(({ variantId }) => variantId);
    },
  };
}

test("an item that comes in between is bought, too: the plan is made again", async () => {
  let plans = 0;
  const decided: number[] = [];
  const meanwhile = async (plan: number) => {
    plans = plan;
    if (plan === 1) await put(1);
  };
  const bought = await db.write(
    callOf(),
    buyCart(meanwhile, () => void decided.push(plans)),
  );
  expect(bought.toSorted()).toEqual(ids.slice(0, 2).toSorted());
  // The first plan twice: whoever is refused may have been answered before, and that is looked up.
  expect(decided).toEqual([1, 1, 2]);
  expect((await stocksOf(db, ids)).slice(0, 3)).toEqual([9, 9, 10]);
  expect(await db.list(CartItem, { userId })).toEqual([]);
});

test("an item that goes in between is not bought, and nothing has to be planned again", async () => {
  let plans = 0;
  await put(1);
  const bought = await db.write(
    callOf(),
    buyCart(async (plan) => {
      plans = plan;
      await carts.removeItem(callOf(), { userId, variantId: ids[0] as string });
    }),
  );
  expect(bought).toEqual([ids[1]]);
  expect(plans).toBe(1);
  expect((await stocksOf(db, ids)).slice(0, 2)).toEqual([10, 9]);
});

test("what a decision had done before it missed a row leaves no trace on its neighbours", async () => {
  seen.committed.length = 0;
  const command = buyCart((plan) => (plan === 1 ? put(1) : Promise.resolve()));
  // Planned at once, so that it runs in the batch of the others.
  const touches = await (command.touches as () => Promise<[]>)();
  let first = true;
  const planned: Command<string[]> = {
    ...command,
    touches: () => {
      if (!first) return (command.touches as () => Promise<[]>)();
      first = false;
      return Promise.resolve(touches);
    },
  };
  const peek: Command<number> = {
    touches: [touch(CartItem, { userId })],
    decide: (tx) => tx.list(CartItem, { userId }).length,
  };
  const [, present] = await Promise.all([db.write(callOf(), planned), Promise.resolve().then(() => db.apply(peek))]);
  expect(present).toBe(2);
  expect(seen.committed.some(({ size }) => size === 2)).toBe(true);
});

test("what changes every time ends in CONFLICT, and nothing is written", async () => {
  let plans = 0;
  const endless = buyCart(async (plan) => {
    plans = plan;
    await put(plan);
  });
  await expect(db.write(callOf(), endless)).rejects.toMatchObject({ reason: "CONFLICT" });
  expect(plans).toBe(5);
  expect(await stocksOf(db, ids)).toEqual(ids.map(() => 10));
  expect(await db.list(CartItem, { userId })).toHaveLength(6);
});
