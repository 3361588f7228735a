/** Two replicas on the same rows wait for each other in one order: a deadlock would cost all of them a second. */
import type { Pool } from "pg";
import { beforeAll, expect, test } from "vitest";
import { Replayed } from "../../src/db/command.ts";
import { DomainError } from "../../src/error.ts";
import { createDatabase } from "../support/database.ts";
import { broken } from "../support/invariants.ts";
import { openDatabase, rankingCaughtUp, value } from "./audit.ts";
import { callOf, newShop, openReplica, type Replica } from "./verbs.ts";

const CALLERS = 32;
const CALLS = 300;

let url: string;
let database: Pool;

beforeAll(async () => {
  url = await createDatabase();
  database = openDatabase(url);
});

type Call = (replica: Replica, index: number) => Promise<unknown>;

/** Runs calls on two replicas in turns, some at a time. Refusals are as good as answers here. */
async function contend(call: Call): Promise<void> {
  const replicas = [await openReplica(url), await openReplica(url)];
  let next = 0;
  const caller = async () => {
    for (let index = next++; index < CALLS; index = next++) {
      await call(replicas[index % 2] as Replica, index >> 1).catch((error: unknown) => {
        if (error instanceof DomainError && error.reason !== "CONFLICT") return;
        if (!(error instanceof Replayed)) throw error;
      });
    }
  };
  await Promise.all(Array.from({ length: CALLERS }, caller));
  await rankingCaughtUp(database, async () => replicas[0]?.ranking.project());
}

type Shop = Awaited<ReturnType<typeof newShop>> & { orderIds: string[] };

const nth = (list: readonly string[], index: number) => list[index % list.length] ?? "";
const purchaseOf = (userId: string, variantIds: readonly string[], fromCart = false) => {
  const lines = variantIds.map((variantId) => ({ variantId, quantity: 1 }));
  return { userId, lines, fromCart, issuedCouponId: undefined, expectedTotal: undefined };
};

const contests: Record<string, (shop: Shop) => Call> = {
  "one wallet, variants in any order": ({ userId, variantIds }) => {
    const orders = [variantIds, variantIds.toReversed(), variantIds.slice(1)];
    return ({ orders: service }, index) => service.checkout(callOf(), purchaseOf(userId, orders[index % 3] ?? []));
  },
  "charges and purchases": ({ userId, variantIds }) => {
    return ({ balances, orders }, index) =>
      index % 3 === 0
        ? balances.charge(callOf(), { userId, amount: 1n, reference: "" })
        : orders.checkout(callOf(), purchaseOf(userId, variantIds.slice(0, 1)));
  },
  "a cart that is filled and bought": ({ userId, variantIds }) => {
    return ({ carts, orders }, index) =>
      index % 2 === 0
        ? carts.addItem(callOf(), { userId, variantId: nth(variantIds, index), quantity: 1, rejectPresent: false })
        : orders.checkout(callOf(), purchaseOf(userId, [], true));
  },
  "the same request to both": ({ userId, variantIds }) => {
    return ({ orders }, index) =>
      orders.checkout(callOf(null, `${userId.slice(-12)}-${index}`), purchaseOf(userId, variantIds.slice(0, 1)));
  },
  "units that are put in, taken out and sold": ({ userId, variantIds }) => {
    return ({ products, orders }, index) =>
      index % 3 === 0
        ? products.adjustStock(callOf(), {
            variantId: nth(variantIds, index / 3),
            delta: index % 2 === 0 ? 5 : -3,
            reference: "",
          })
        : orders.checkout(callOf(), purchaseOf(userId, variantIds));
  },
  "orders that are paid and cancelled": ({ userId, orderIds }) => {
    return ({ orders, payments }, index) => {
      const order = { userId, orderId: nth(orderIds, index >> 1) };
      return index % 2 === 0 ? payments.pay(callOf(), { ...order, method: "BALANCE" }) : orders.cancel(callOf(), order);
    };
  },
};

test.for(Object.entries(contests))("%s", async ([, contest]) => {
  const replica = await openReplica(url);
  const shop = await newShop(replica, 1_000_000n, Array(3).fill({ price: 1n, stock: 10_000 }));
  const placed = Array.from({ length: 30 }, () =>
    replica.orders.place(callOf(), purchaseOf(shop.userId, shop.variantIds), undefined),
  );
  const orderIds = (await Promise.all(placed)).map(({ order }) => order.id);
  await contend(contest({ ...shop, orderIds }));
  const deadlocks = "select deadlocks::int from pg_stat_database where datname = current_database()";
  expect(await value(database, deadlocks)).toBe(0);
  expect(await broken(database, Object.fromEntries(shop.variantIds.map((id) => [id, 10_000])))).toEqual([]);
});
