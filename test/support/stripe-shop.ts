/** A service that takes cards through a Stripe of the tests, and buyers at it. */
import type { Pool } from "pg";
import { beforeAll, expect } from "vitest";
import type { OrderState } from "../../gen/shop/v1/order_pb.ts";
import { PaymentMethod } from "../../gen/shop/v1/payment_pb.ts";
import { openDatabase, value } from "../exact/audit.ts";
import { GrpcClient } from "../exact/clients.ts";
import { type Clients, clientsOf, fresh, newUser, newVariant, type Stocks, serverOn, tokenOf } from "../exact/shop.ts";
import { createDatabase } from "./database.ts";
import type { Server } from "./processes.ts";
import { STRIPE_KEY, startStripe } from "./stripe.ts";

export const WEBHOOK_SECRET = "whsec_hunter2";
export const PRICE = 700n;

/** What Stripe has not settled yet. */
const UNSETTLED = `
  select (select count(*) from payment where state = 'PENDING')::int
       + (select count(*) from gateway_refund where state = 'PENDING')::int`;

async function askFrom(database: Pool, time: string): Promise<void> {
  for (const table of ["payment", "gateway_refund"]) {
    await database.query(`update ${table} set next_try_time = ${time} where state = 'PENDING'`);
  }
}

export type Target = { userId: string; orderId: string };

/** Opens the shop before the tests of the file. A payment is asked about as soon as `due()` is called, or after six seconds. */
export async function stripeShop() {
  const stripe = await startStripe();
  // As it is at first: nothing may depend on it.
  stripe.books.searchable = false;
  const env = {
    PAYMENT_GATEWAY: "stripe",
    PAYMENT_TIMEOUT: "1s",
    STRIPE_SECRET_KEY: STRIPE_KEY,
    STRIPE_WEBHOOK_SECRET: WEBHOOK_SECRET,
    STRIPE_API_URL: stripe.url,
    LOG_LEVEL: "debug",
  };
  const stocks: Stocks = {};
  const state = {} as { url: string; server: Server; database: Pool; shop: Clients; variantId: string };

  const clientsAt = async (server: Server) => clientsOf(new GrpcClient(server, await tokenOf()).transport);

  beforeAll(async () => {
    const url = await createDatabase();
    const server = await serverOn(url, env);
    const shop = await clientsAt(server);
    const variantId = await newVariant(shop, stocks, PRICE, 1_000);
    Object.assign(state, { url, server, database: openDatabase(url), shop, variantId });
  });

  return {
    stripe,
    books: stripe.books,
    stocks,
    state,
    /** Another server process on the same database, or on another way to it. */
    async another(others: NodeJS.ProcessEnv = {}, url = state.url): Promise<{ server: Server; shop: Clients }> {
      const server = await serverOn(url, { ...env, ...others });
      return { server, shop: await clientsAt(server) };
    },
    async placed(): Promise<Target> {
      const { shop, variantId } = state;
      const userId = await newUser(shop);
      const lines = [{ variantId, quantity: 1 }];
      const { order } = await shop.orders.placeOrder({ requestId: fresh(), userId, lines });
      return { userId, orderId: order?.id ?? "" };
    },
    pay: (target: Target, paymentToken = "pm_card_visa", shop = state.shop) =>
      shop.payments.payOrder({ requestId: fresh(), ...target, method: PaymentMethod.EXTERNAL, paymentToken }),
    stateOf: async (target: Target): Promise<OrderState | undefined> =>
      (await state.shop.orders.getOrder(target)).order?.state,
    paymentIdOf: ({ orderId }: Target): Promise<string> =>
      value(state.database, "select id::text from payment where order_id = $1", orderId),
    /** As if the time had passed after which the gateway is asked. */
    due: () => askFrom(state.database, "now()"),
    /** As if nobody was going to ask for long. */
    notDue: () => askFrom(state.database, "now() + interval '1 hour'"),
    settled: () => expect.poll(() => value(state.database, UNSETTLED), { timeout: 30_000 }).toBe(0),
  };
}
