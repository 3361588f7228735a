/** The verbs of every feature on a `Database` of the test's own, as a replica would hold them. */
import { hash, randomUUID } from "node:crypto";
import type { MikroORM } from "@mikro-orm/postgresql";
import { afterAll } from "vitest";
import { entities } from "../../src/app.ts";
import { Balances } from "../../src/balance/balance.service.ts";
import { Carts } from "../../src/cart/cart.service.ts";
import { Coupons } from "../../src/coupon/coupon.service.ts";
import type { Write } from "../../src/db/command.ts";
import { Database, type DatabaseOptions } from "../../src/db/database.ts";
import { createOrm } from "../../src/db/orm.ts";
import { expireOverdue } from "../../src/order/expiry.ts";
import { Orders } from "../../src/order/order.service.ts";
import { Payments } from "../../src/payment/payment.service.ts";
import { Products } from "../../src/product/product.service.ts";
import { Ranking } from "../../src/ranking/ranking.service.ts";
import { Users } from "../../src/user/user.service.ts";

export const ORDER_TTL = 15 * 60_000;

const opened: MikroORM[] = [];
afterAll(() => Promise.all(opened.map((orm) => orm.close())));

export type Replica = Readonly<{
  orm: MikroORM;
  db: Database;
  users: Users;
  balances: Balances;
  products: Products;
  carts: Carts;
  coupons: Coupons;
  orders: Orders;
  payments: Payments;
  ranking: Ranking;
}>;

export type ReplicaOptions = DatabaseOptions & { maxBalance?: bigint };

/** One more replica on the database, with connections of its own. */
export async function openReplica(url: string, options: ReplicaOptions = {}): Promise<Replica> {
  const { maxBalance = 2n ** 63n - 1n, ...databaseOptions } = options;
  const orm = await createOrm({ url, poolSize: 6, entities });
  opened.push(orm);
  const db = await Database.open(orm, databaseOptions);
  return {
    orm,
    db,
    users: new Users(db),
    balances: new Balances(db, { maxCharge: maxBalance, maxBalance }),
    products: new Products(db),
    carts: new Carts(db),
    coupons: new Coupons(db),
    orders: new Orders(db, ORDER_TTL),
    payments: new Payments(db),
    ranking: new Ranking(db),
  };
}

/** Expires on this replica what is overdue and no other one's. @throws what has kept an order from that */
export async function expireAll({ db }: Replica): Promise<void> {
  const { failures } = await expireOverdue(db, 10_000);
  if (failures.length > 0) throw failures[0];
}

const toJson = (content: unknown) =>
  JSON.stringify(content, (_, value) => (typeof value === "bigint" ? String(value) : value)) ?? "null";

export type Call = Write & {
  /** What was last made to be stored as the answer. */
  answer: Uint8Array | undefined;
};

/** A write call with `content`; without an id it is one that nobody has sent before. */
export function callOf(content: unknown = null, requestId: string = randomUUID(), rpc = "test"): Call {
  const call: Call = {
    scope: "test",
    rpc,
    requestId,
    fingerprint: hash("sha256", toJson(content), "buffer"),
    signal: new AbortController().signal,
    answer: undefined,
    encode: (result) => {
      call.answer = Buffer.from(toJson(result));
      return call.answer;
    },
  };
  return call;
}

/** The ids of a new user with `money` in the wallet, and of variants of a new product. */
export async function newShop(replica: Replica, money: bigint, variants: readonly { price: bigint; stock: number }[]) {
  const { id: userId } = await replica.users.create(callOf(), "A buyer");
  if (money > 0n) await replica.balances.charge(callOf(), { userId, amount: money, reference: "" });
  const product = await replica.products.create(callOf(), {
    name: "A thing",
    description: "",
    variants: variants.map((variant, index) => ({ name: `Form ${index + 1}`, ...variant })),
  });
  return { userId, variantIds: product.variants.map(({ id }) => id), productId: product.product.id };
}
