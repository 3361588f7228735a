/** A load of requests of every kind, for processes that die under it: sent, sent again, and counted. */
import type { DescMethodUnary } from "@bufbuild/protobuf";
import type { Pool } from "pg";
import { expect, vi } from "vitest";
import { BalanceService } from "../../gen/shop/v1/balance_pb.ts";
import { CartService } from "../../gen/shop/v1/cart_pb.ts";
import { CouponService } from "../../gen/shop/v1/coupon_pb.ts";
import { OrderService } from "../../gen/shop/v1/order_pb.ts";
import { RankingGroup } from "../../gen/shop/v1/ranking_pb.ts";
import type { Server } from "../support/processes.ts";
import { expectExact, value } from "./audit.ts";
import { GrpcClient, type RawAnswer, reasonOf } from "./clients.ts";
import { clientsOf, fresh, many, newCoupon, newUser, newVariant, type Stocks, tokenOf } from "./shop.ts";

const USERS = 60;
export const CALLERS = 24;

const token = await tokenOf();

type Request = { method: DescMethodUnary; request: { requestId: string } };
export type Load = { requests: Request[]; stocks: Stocks; users: string[]; variantId: string; couponId: string };

/** The units that the variant's product, and the variant itself, are listed with among the best sellers. */
async function unitsListed(server: Server, database: Pool, variantId: string): Promise<(bigint | undefined)[]> {
  const productId = await value<string>(database, "select product_id from variant where id = $1", variantId);
  const client = new GrpcClient(server, token);
  const { ranking } = clientsOf(client.transport);
  const unitsBy = async (group: RankingGroup) => {
    const { products } = await ranking.listTopProducts({ group, limit: 100 });
    return products.find((one) => one.productId === productId)?.unitsSold;
  };
  const units = [await unitsBy(RankingGroup.PRODUCT), await unitsBy(RankingGroup.VARIANT)];
  client.close();
  return units;
}

/**
 * For each user a charge, a claim, an order that waits, something for the cart, a checkout, and the cancellation of another
 * one; all of them possible. The ranking keeps totals of what is asked in the end.
 */
export async function prepare(server: Server, database: Pool): Promise<Load> {
  const client = new GrpcClient(server, token);
  const shop = clientsOf(client.transport);
  const stocks: Stocks = {};
  const [variantId, couponId] = [await newVariant(shop, stocks, 100n, 1_000), await newCoupon(shop, USERS)];
  const users = await many(USERS, () => newUser(shop, 500n));
  const lines = [{ variantId, quantity: 1 }];
  // Of other quantities than what is bought: the ranking changes by both.
  const bought = await many(USERS, (index) =>
    shop.orders.checkout({
      requestId: fresh(),
      userId: users[index] as string,
      lines: [{ variantId, quantity: 2 }],
    }),
  );
  const totalled = async () => {
    await unitsListed(server, database, variantId);
    expect(await value(database, "select count(*)::int from ranking_window")).toBe(2);
  };
  await vi.waitFor(totalled, { timeout: 10_000, interval: 20 });
  const of = (method: object, rest: object): Request => ({
    method: method as DescMethodUnary,
    request: { requestId: fresh(), ...rest },
  });
  const requests = users.flatMap((userId, index) => [
    of(OrderService.method.checkout, { userId, lines }),
    of(BalanceService.method.chargeBalance, { userId, amount: 7n }),
    of(CouponService.method.claimCoupon, { userId, couponId }),
    of(OrderService.method.placeOrder, { userId, lines }),
    of(CartService.method.addItem, { userId, variantId, quantity: 2 }),
    of(OrderService.method.cancelOrder, { userId, orderId: bought[index]?.order?.id ?? "" }),
  ]);
  client.close();
  return { requests, stocks, users, variantId, couponId };
}

export type Sent = { answers: Map<string, RawAnswer>; refused: Map<string, string> };

/** Sends everything, some at a time; `onAnswer` hears how many were answered so far. */
export async function sendAll(
  server: Server,
  requests: readonly Request[],
  onAnswer = (_count: number) => {},
): Promise<Sent> {
  const client = new GrpcClient(server, token);
  const sent: Sent = { answers: new Map(), refused: new Map() };
  const queue = [...requests];
  const caller = async () => {
    for (let next = queue.shift(); next; next = queue.shift()) {
      const { method, request } = next;
      try {
        sent.answers.set(request.requestId, await client.raw(method, request));
        onAnswer(sent.answers.size);
      } catch (error) {
        sent.refused.set(request.requestId, reasonOf(error));
      }
    }
  };
  await many(CALLERS, caller);
  client.close();
  return sent;
}

/** Sends everything once more, which must succeed, and compares it with the answers that got through before. */
export async function sendAgain(server: Server, { requests }: Load, before: Sent): Promise<void> {
  const { answers, refused } = await sendAll(server, requests);
  expect([...refused.values()]).toEqual([]);
  for (const [requestId, { bytes }] of before.answers) {
    expect(answers.get(requestId)).toEqual({ bytes, replayed: true });
  }
}

/** That each request of the load was carried out once, that all invariants hold, and that the ranking says so. */
export async function expectEachOnce(server: Server, database: Pool, load: Load): Promise<void> {
  const { users, stocks, variantId, couponId, requests } = load;
  const count = (sql: string, parameter: unknown) =>
    value<number>(database, `select count(*)::int from ${sql}`, parameter);
  expect(await count("shop_order where user_id = any($1)", users)).toBe(3 * USERS);
  expect(await count("shop_order where user_id = any($1) and state = 'PAID'", users)).toBe(USERS);
  expect(await count("shop_order where user_id = any($1) and state = 'CANCELLED'", users)).toBe(USERS);
  expect(await count("issued_coupon where coupon_id = $1", couponId)).toBe(USERS);
  expect(await count("ledger_entry where user_id = any($1) and kind = 'CHARGE' and amount = 7", users)).toBe(USERS);
  expect(await count("cart_item where user_id = any($1) and quantity = 2", users)).toBe(USERS);
  expect(await count("wallet where user_id = any($1) and balance = 407", users)).toBe(USERS);
  expect(await value(database, "select stock from variant where id = $1", variantId)).toBe(1_000 - 2 * USERS);
  const ids = requests.map(({ request }) => request.requestId);
  expect(await count("idempotency where request_id = any($1)", ids)).toBe(requests.length);
  await expectExact(database, stocks);
  expect(await value(database, "select count(*)::int from ranking_window")).toBe(2);
  expect(await unitsListed(server, database, variantId)).toEqual([BigInt(USERS), BigInt(USERS)]);
}
