/** Every list: its page sizes, its order, its tokens, and walks while others add rows. */
import type { MessageInitShape } from "@bufbuild/protobuf";
import { beforeAll, describe, expect, test } from "vitest";
import { BalanceService } from "../../gen/shop/v1/balance_pb.ts";
import { CouponService } from "../../gen/shop/v1/coupon_pb.ts";
import { OrderService } from "../../gen/shop/v1/order_pb.ts";
import { PaymentService } from "../../gen/shop/v1/payment_pb.ts";
import { ProductService } from "../../gen/shop/v1/product_pb.ts";
import { expectRefusals } from "./refusal.ts";
import { rules } from "./rules.ts";
import { fresh, type Method, openShop, trusted } from "./shop.ts";

const shop = await openShop();
const { call } = shop;
const { listLedgerEntries } = BalanceService.method;
const { listCoupons, listIssuedCoupons } = CouponService.method;
const { listOrders } = OrderService.method;
const { listPaymentEvents } = PaymentService.method;
const { listProducts } = ProductService.method;

type Ask = Readonly<{ pageSize?: number; pageToken?: string }>;
type Page = Readonly<{ keys: readonly string[]; nextPageToken: string }>;

/** A list of one owner: how to read a page of it, and how to put one more in. */
type List = Readonly<{ method: Method; request: object; page(ask: Ask): Promise<Page>; add(): Promise<unknown> }>;

async function makeLists(): Promise<Record<string, List>> {
  const userId = await shop.user(1_000_000n);
  const { variantId } = await shop.product({ stock: 10_000 });
  const couponId = await shop.coupon({ totalQuantity: 1_000, perUserLimit: 1_000 });
  const { paymentId, userId: payer } = await shop.paid();
  const charge = { userId, amount: 1n };
  const order = { userId, lines: [{ variantId, quantity: 1 }] };
  const events = { userId: payer, paymentId };
  return {
    products: {
      method: listProducts,
      request: {},
      page: async (ask) => {
        const { products, nextPageToken } = await call(listProducts, ask);
        return { keys: products.map(({ id }) => id), nextPageToken };
      },
      add: () => shop.product(),
    },
    coupons: {
      method: listCoupons,
      request: {},
      page: async (ask) => {
        const { coupons, nextPageToken } = await call(listCoupons, ask);
        return { keys: coupons.map(({ id }) => id), nextPageToken };
      },
      add: () => shop.coupon(),
    },
    "issued coupons": {
      method: listIssuedCoupons,
      request: { userId },
      page: async (ask) => {
        const { issuedCoupons, nextPageToken } = await call(listIssuedCoupons, { userId, ...ask });
        return { keys: issuedCoupons.map(({ id }) => id), nextPageToken };
      },
      add: () => call(CouponService.method.claimCoupon, { requestId: fresh(), userId, couponId }),
    },
    orders: {
      method: listOrders,
      request: { userId },
      page: async (ask) => {
        const { orders, nextPageToken } = await call(listOrders, { userId, ...ask });
        return { keys: orders.map(({ id }) => id), nextPageToken };
      },
      add: () => call(OrderService.method.placeOrder, { requestId: fresh(), ...order }),
    },
    "ledger entries": {
      method: listLedgerEntries,
      request: { userId },
      page: async (ask) => {
        const { entries, nextPageToken } = await call(listLedgerEntries, { userId, ...ask });
        return { keys: entries.map(({ seq }) => String(seq).padStart(19, "0")), nextPageToken };
      },
      add: () => call(BalanceService.method.chargeBalance, { requestId: fresh(), ...charge }),
    },
    "payment events": {
      method: listPaymentEvents,
      request: events,
      page: async (ask) => {
        const { events: found, nextPageToken } = await call(listPaymentEvents, { ...events, ...ask });
        return { keys: found.map(({ seq }) => String(seq).padStart(19, "0")), nextPageToken };
      },
      // A payment changes twice at the most: the only list that no test can fill.
      add: () => call(PaymentService.method.refundPayment, { requestId: fresh(), ...events, everything: true }),
    },
  };
}

const lists = await makeLists();
const growing = Object.entries(lists).filter(([name]) => name !== "payment events");

async function walk(
  { page }: List,
  pageSize: number,
  between: () => Promise<unknown> = async () => {},
): Promise<string[][]> {
  const pages: string[][] = [];
  let pageToken = "";
  do {
    const { keys, nextPageToken } = await page({ pageSize, pageToken });
    pages.push([...keys]);
    pageToken = nextPageToken;
    if (pageToken) await between();
  } while (pageToken);
  return pages;
}

test("every RPC with a page token is here", () => {
  const paged = rules
    .map(({ method }) => method)
    .filter(({ input }) => input.fields.some((it) => it.name === "page_token"));
  expect(new Set(Object.values(lists).map(({ method }) => method))).toEqual(new Set(paged));
});

describe.each(growing)("%s", (_name, list) => {
  const added: string[] = [];

  beforeAll(async () => {
    for (let row = 0; row < 7; row += 1) {
      await list.add();
      const [newest = ""] = (await list.page({ pageSize: 1 })).keys;
      added.unshift(newest);
    }
  });

  test("newest first, in pages of the size asked for, without a gap or a repetition", async () => {
    const [all = []] = await walk(list, 1_000);
    expect(all.slice(0, 7)).toEqual(added);
    expect(all).toEqual(all.toSorted().toReversed());
    for (const size of [1, 2, 3, all.length, all.length + 1]) {
      const pages = await walk(list, size);
      expect(pages.flat()).toEqual(all);
      expect(pages.slice(0, -1).every((page) => page.length === size)).toBe(true);
      expect(pages.at(-1)).not.toEqual([]);
    }
  });

  test("what is added during a walk does not disturb it", async () => {
    const [before] = await walk(list, 1_000);
    const walked = await walk(list, 2, list.add);
    expect(walked.flat()).toEqual(before);
  });
});

test("the default page holds 50, and none more than 1000", async () => {
  await shop.sql.query(
    `insert into coupon (id, name, discount_amount, min_order_amount, total_quantity, issued, per_user_limit, valid_from,
                         valid_until, create_time)
     select gen_random_uuid(), 'many', 100, 0, 1, 0, 1, now(), now() + interval '1 day', now() from generate_series(1, 1100)`,
  );
  const sizeOf = async (ask: Ask) => (await lists.coupons?.page(ask))?.keys.length;
  expect(await sizeOf({})).toBe(50);
  expect(await sizeOf({ pageSize: 999 })).toBe(999);
  expect(await sizeOf({ pageSize: 1_001 })).toBe(1_000);
  expect(await sizeOf({ pageSize: 2_147_483_647 })).toBe(1_000);
});

test("a token is good for the list that gave it, and for no other", async () => {
  await lists["payment events"]?.add();
  const tokens = new Map<string, string>();
  for (const [name, { page }] of Object.entries(lists)) tokens.set(name, (await page({ pageSize: 1 })).nextPageToken);
  expect([...tokens.values()]).not.toContain("");
  for (const [name, { method, request }] of Object.entries(lists)) {
    const others = [...tokens].filter(([other]) => other !== name);
    const refusals = others.map(([other, pageToken]) => ({
      name: `${name} with a token of ${other}`,
      request: { ...request, pageToken },
      token: trusted,
      reason: "PAGE_TOKEN_INVALID",
    }));
    await expectRefusals(shop, method, refusals);
  }
});

test("a token of one payment's events is none of another's, nor is one beyond all numbers", async () => {
  const [one, other] = [await shop.paid(), await shop.paid()];
  for (const { userId, paymentId } of [one, other]) {
    await call(PaymentService.method.refundPayment, { requestId: fresh(), userId, paymentId, everything: true });
  }
  const first = await call(listPaymentEvents, { ...one, pageSize: 1 });
  expect(first.events.map(({ seq }) => seq)).toEqual([2]);
  const second = await call(listPaymentEvents, { ...one, pageSize: 1, pageToken: first.nextPageToken });
  expect([second.events.map(({ seq }) => seq), second.nextPageToken]).toEqual([[1], ""]);
  const tokenOf = (seq: string) => Buffer.from(`payment-events/${one.paymentId}:${seq}`).toString("base64url");
  const refused = (name: string, request: MessageInitShape<typeof listPaymentEvents.input>) => ({
    name,
    request,
    token: trusted,
    reason: "PAGE_TOKEN_INVALID",
  });
  await expectRefusals(shop, listPaymentEvents, [
    refused("of another payment", { ...other, pageToken: first.nextPageToken }),
    refused("beyond a bigint", { ...one, pageToken: tokenOf("9999999999999999999") }),
    refused("before the first", { ...one, pageToken: tokenOf("0") }),
  ]);
  // Beyond an integer, but a number: a place behind which all events are.
  const all = await call(listPaymentEvents, { ...one, pageToken: tokenOf("999999999999999999") });
  expect(all.events).toHaveLength(2);
});
