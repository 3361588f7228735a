/** Server processes and connections that die under load: whoever sends a request again finds it done once. */
import type { DescMethodUnary } from "@bufbuild/protobuf";
import type { Pool } from "pg";
import { beforeAll, expect, test } from "vitest";
import { BalanceService } from "../../gen/shop/v1/balance_pb.ts";
import { CartService } from "../../gen/shop/v1/cart_pb.ts";
import { CouponService } from "../../gen/shop/v1/coupon_pb.ts";
import { OrderService } from "../../gen/shop/v1/order_pb.ts";
import { createDatabase } from "../support/database.ts";
import type { Server } from "../support/processes.ts";
import { expectExact, openDatabase, value } from "./audit.ts";
import { GrpcClient, type RawAnswer, reasonOf } from "./clients.ts";
import { clientsOf, fresh, many, newCoupon, newUser, newVariant, type Stocks, serverOn, tokenOf } from "./shop.ts";

const USERS = 60;
const CALLERS = 24;

let url: string;
let database: Pool;
let token: string;

beforeAll(async () => {
  url = await createDatabase();
  database = openDatabase(url);
  token = await tokenOf();
});

type Request = { method: DescMethodUnary; request: { requestId: string } };
type Load = { requests: Request[]; stocks: Stocks; users: string[]; variantId: string; couponId: string };

/** For each user a charge, a claim, an order that waits, something for the cart, and a checkout; all of them possible. */
async function prepare(server: Server): Promise<Load> {
  const client = new GrpcClient(server, token);
  const shop = clientsOf(client.transport);
  const stocks: Stocks = {};
  const [variantId, couponId] = [await newVariant(shop, stocks, 100n, 1_000), await newCoupon(shop, USERS)];
  const users = await many(USERS, () => newUser(shop, 300n));
  const lines = [{ variantId, quantity: 1 }];
  const of = (method: object, rest: object): Request => ({
    method: method as DescMethodUnary,
    request: { requestId: fresh(), ...rest },
  });
  const requests = users.flatMap((userId) => [
    of(OrderService.method.checkout, { userId, lines }),
    of(BalanceService.method.chargeBalance, { userId, amount: 7n }),
    of(CouponService.method.claimCoupon, { userId, couponId }),
    of(OrderService.method.placeOrder, { userId, lines }),
    of(CartService.method.addItem, { userId, variantId, quantity: 2 }),
  ]);
  client.close();
  return { requests, stocks, users, variantId, couponId };
}

type Sent = { answers: Map<string, RawAnswer>; refused: Map<string, string> };

/** Sends everything, some at a time; `onAnswer` hears how many were answered so far. */
async function sendAll(server: Server, requests: readonly Request[], onAnswer = (_count: number) => {}): Promise<Sent> {
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
async function sendAgain(server: Server, { requests }: Load, before: Sent): Promise<void> {
  const { answers, refused } = await sendAll(server, requests);
  expect([...refused.values()]).toEqual([]);
  for (const [requestId, { bytes }] of before.answers) {
    expect(answers.get(requestId)).toEqual({ bytes, replayed: true });
  }
}

async function expectEachOnce({ users, stocks, variantId, couponId, requests }: Load): Promise<void> {
  const count = (sql: string, parameter: unknown) =>
    value<number>(database, `select count(*)::int from ${sql}`, parameter);
  expect(await count("shop_order where user_id = any($1)", users)).toBe(2 * USERS);
  expect(await count("shop_order where user_id = any($1) and state = 'PAID'", users)).toBe(USERS);
  expect(await count("issued_coupon where coupon_id = $1", couponId)).toBe(USERS);
  expect(await count("ledger_entry where user_id = any($1) and kind = 'CHARGE' and amount = 7", users)).toBe(USERS);
  expect(await count("cart_item where user_id = any($1) and quantity = 2", users)).toBe(USERS);
  expect(await count("wallet where user_id = any($1) and balance = 207", users)).toBe(USERS);
  expect(await value(database, "select stock from variant where id = $1", variantId)).toBe(1_000 - 2 * USERS);
  const ids = requests.map(({ request }) => request.requestId);
  expect(await count("idempotency where request_id = any($1)", ids)).toBe(requests.length);
  await expectExact(database, stocks);
}

test("kill -9 in the middle of load", async () => {
  const server = await serverOn(url);
  const load = await prepare(server);
  const sent = await sendAll(server, load.requests, (count) => {
    if (count === 80) server.kill("SIGKILL");
  });
  await server.exited;
  expect(sent.refused.size).toBeGreaterThan(0);
  const restarted = await serverOn(url);
  await sendAgain(restarted, load, sent);
  await expectEachOnce(load);
  await restarted.stop();
});

test("kill -9 of one of two processes: the other one goes on", async () => {
  const [dying, other] = [await serverOn(url), await serverOn(url)];
  const load = await prepare(other);
  const [sent] = await Promise.all([
    sendAll(dying, load.requests, (count) => {
      if (count === 60) dying.kill("SIGKILL");
    }),
    // At the same time, the same requests: who comes second has the answer of the first.
    sendAgain(other, load, { answers: new Map(), refused: new Map() }),
  ]);
  await sendAgain(other, load, sent);
  await expectEachOnce(load);
  await other.stop();
});

test("connections to the database die in the middle of load", async () => {
  const server = await serverOn(url);
  const load = await prepare(server);
  const kill = `select pg_terminate_backend(pid) from pg_stat_activity
                 where datname = current_database() and pid <> pg_backend_pid() and application_name <> 'auditor'`;
  const killings: Promise<unknown>[] = [];
  const sent = await sendAll(server, load.requests, (count) => {
    if (count % 40 === 0) killings.push(database.query(kill).catch(() => {}));
  });
  await Promise.all(killings);
  // Connections end a moment after they were told to: whoever meets one sends once more.
  const { users } = clientsOf(new GrpcClient(server, token).transport);
  const probe = () => many(CALLERS, () => users.createUser({ requestId: fresh(), name: "A probe" }));
  await expect.poll(() => probe().then(() => "OK", reasonOf), { timeout: 10_000 }).toBe("OK");
  expect(new Set([...sent.refused.values(), "DATABASE_UNAVAILABLE"])).toEqual(new Set(["DATABASE_UNAVAILABLE"]));
  expect(sent.refused.size).toBeGreaterThan(0);
  await sendAgain(server, load, sent);
  await expectEachOnce(load);
  await server.stop();
});

test("SIGTERM in the middle of load: each call is answered or refused as a whole", async () => {
  const server = await serverOn(url);
  const load = await prepare(server);
  const sent = await sendAll(server, load.requests, (count) => {
    if (count === 80) server.kill("SIGTERM");
  });
  expect((await server.exited).code).toBe(0);
  for (const reason of new Set(sent.refused.values())) expect(reason).toMatch(/^SHUTTING_DOWN$|: Unavailable /);
  const stored = await database.query<{ request_id: string }>("select request_id from idempotency");
  const known = new Set(stored.rows.map((row) => row.request_id));
  // What was refused has had no effect: nobody has to wonder.
  expect([...sent.refused].filter(([id, reason]) => reason === "SHUTTING_DOWN" && known.has(id))).toEqual([]);
  expect([...sent.answers.keys()].filter((id) => !known.has(id))).toEqual([]);
  const restarted = await serverOn(url);
  await sendAgain(restarted, load, sent);
  await expectEachOnce(load);
  await restarted.stop();
});
