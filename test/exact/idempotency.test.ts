/** A write that is sent again has its first answer, and no second effect. */
import type { DescMessage, DescMethodUnary, MessageInitShape } from "@bufbuild/protobuf";
import { fromBinary } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import type { Pool } from "pg";
import { beforeAll, expect, test } from "vitest";
import { BalanceService } from "../../gen/shop/v1/balance_pb.ts";
import { CartService } from "../../gen/shop/v1/cart_pb.ts";
import { CouponService } from "../../gen/shop/v1/coupon_pb.ts";
import { OrderService } from "../../gen/shop/v1/order_pb.ts";
import { PaymentMethod, PaymentService } from "../../gen/shop/v1/payment_pb.ts";
import { ProductService } from "../../gen/shop/v1/product_pb.ts";
import { RankingService } from "../../gen/shop/v1/ranking_pb.ts";
import { UserService } from "../../gen/shop/v1/user_pb.ts";
import { createDatabase } from "../support/database.ts";
import type { Server } from "../support/processes.ts";
import { openDatabase, rankingCaughtUp, value } from "./audit.ts";
import { doors, GrpcClient, type RawAnswer, reasonOf } from "./clients.ts";
import { type Clients, clientsOf, fresh, newUser, newVariant, serverOn, tokenOf } from "./shop.ts";

let url: string;
let server: Server;
let database: Pool;
let client: GrpcClient;
let shop: Clients;

beforeAll(async () => {
  url = await createDatabase();
  server = await serverOn(url);
  database = openDatabase(url);
  client = new GrpcClient(server, await tokenOf());
  shop = clientsOf(client.transport);
});

type Sent = { rpc: string; answer: RawAnswer; again: () => Promise<RawAnswer>; otherwise: () => Promise<RawAnswer> };

/** Everything that is stored, in one hash; but for who reads events, and how far that has come. */
async function contents(): Promise<string> {
  await rankingCaughtUp(database);
  const { rows } = await database.query<{ name: string }>(
    `select table_name as name from information_schema.tables
      where table_schema = 'public' and table_name <> 'event_reader' order by 1`,
  );
  const digests = rows.map(({ name }) =>
    value<string>(database, `select md5(coalesce(string_agg(t::text, ';' order by t::text), '')) from "${name}" t`),
  );
  return (await Promise.all(digests)).join();
}

/** Sends a write and notes how to send it again, and how to send another one with its id. */
function sender(sent: Sent[]) {
  return async <I extends DescMessage, O extends DescMessage>(
    method: DescMethodUnary<I, O>,
    request: MessageInitShape<I>,
    other: MessageInitShape<I>,
  ) => {
    const whole = { ...request, requestId: fresh() };
    const again = () => client.raw(method as DescMethodUnary, whole as never);
    const otherwise = () => client.raw(method as DescMethodUnary, { ...whole, ...other } as never);
    const answer = await again();
    sent.push({ rpc: `${method.parent.typeName}/${method.name}`, answer, again, otherwise });
    return fromBinary(method.output, answer.bytes);
  };
}

/** Every write of the contract once, each a success. */
async function sendAll(): Promise<Sent[]> {
  const sent: Sent[] = [];
  const send = sender(sent);
  const { user } = await send(UserService.method.createUser, { name: "A buyer" }, { name: "Another" });
  const userId = user?.id ?? "";
  await send(BalanceService.method.chargeBalance, { userId, amount: 10_000n }, { amount: 1n });
  const variants = [{ name: "One size", price: 100n, stock: 10 }];
  const created = await send(ProductService.method.createProduct, { name: "A thing", variants }, { name: "Another" });
  const product = { productId: created.product?.id ?? "", version: 1n };
  const variantId = created.product?.variants[0]?.id ?? "";
  await send(ProductService.method.updateProduct, { ...product, name: "A better thing" }, { name: "A worse thing" });
  await send(ProductService.method.adjustStock, { variantId, delta: 5 }, { delta: 6 });
  const item = { userId, variantId };
  await send(CartService.method.addItem, { ...item, quantity: 1 }, { quantity: 2 });
  await send(CartService.method.updateItem, { ...item, quantity: 3 }, { quantity: 4 });
  await send(CartService.method.removeItem, item, { variantId: userId });
  await send(CartService.method.clearCart, { userId }, { userId: variantId });
  const coupon = await send(
    CouponService.method.createCoupon,
    {
      name: "A coupon",
      discount: { kind: { case: "amount", value: 10n } },
      totalQuantity: 1,
      validUntil: timestampFromMs(Date.now() + 86_400_000),
    },
    { totalQuantity: 2 },
  );
  const claim = { userId, couponId: coupon.coupon?.id ?? "" };
  await send(CouponService.method.claimCoupon, claim, { couponId: userId });
  const lines = [{ variantId, quantity: 1 }];
  const checkedOut = await send(OrderService.method.checkout, { userId, lines }, { expectedTotal: 1n });
  const order = async () => {
    const { order } = await send(OrderService.method.placeOrder, { userId, lines }, { expectedTotal: 1n });
    return { userId, orderId: order?.id ?? "" };
  };
  const paid = { ...(await order()), method: PaymentMethod.BALANCE };
  const { payment } = await send(PaymentService.method.payOrder, paid, { orderId: userId });
  await send(OrderService.method.cancelOrder, await order(), { orderId: userId });
  const refund = { userId, paymentId: payment?.id ?? "", everything: true };
  await send(PaymentService.method.refundPayment, refund, { paymentId: checkedOut.payment?.id ?? "" });
  return sent;
}

test("every write of the contract: its first answer, byte for byte, and nothing else", async () => {
  const sent = await sendAll();
  const services = [UserService, BalanceService, ProductService, CartService, CouponService, OrderService];
  const writes = [...services, PaymentService, RankingService]
    .flatMap((service): readonly (typeof service.methods)[number][] => service.methods)
    .filter((method) => method.input.fields.some(({ name }) => name === "request_id"))
    .map((method) => `${method.parent.typeName}/${method.name}`);
  expect(new Set(sent.map(({ rpc }) => rpc))).toEqual(new Set(writes));

  const before = await contents();
  // By now much has changed since the first answers.
  for (const { rpc, answer, again } of sent) {
    expect(answer.replayed, rpc).toBe(false);
    expect(await again(), rpc).toEqual({ bytes: answer.bytes, replayed: true });
  }
  for (const { rpc, otherwise } of sent) {
    expect(await otherwise().then(() => "OK", reasonOf), rpc).toBe("REQUEST_ID_REUSED");
  }
  expect(await contents()).toBe(before);
});

test("the answer is the same through the other door", async () => {
  const web = clientsOf(doors["Connect JSON over HTTP/1.1"]?.(server, await tokenOf()) as never);
  const request = { requestId: fresh(), userId: await newUser(shop), amount: 77n, reference: "gift" };
  const first = await shop.balances.chargeBalance(request);
  let replayed: string | null = null;
  const onHeader = (headers: Headers) => {
    replayed = headers.get("idempotent-replay");
  };
  expect(await web.balances.chargeBalance(request, { onHeader })).toEqual(first);
  expect(replayed).toBe("true");
});

test("a refused request stores nothing, and succeeds when it can", async () => {
  const userId = await newUser(shop);
  const request = {
    requestId: fresh(),
    userId,
    lines: [{ variantId: await newVariant(shop, {}, 100n, 1), quantity: 1 }],
  };
  const send = () => client.raw(OrderService.method.checkout, request);
  const before = await contents();
  expect(await send().then(() => "OK", reasonOf)).toBe("INSUFFICIENT_BALANCE");
  expect(await contents()).toBe(before);
  await shop.balances.chargeBalance({ requestId: fresh(), userId, amount: 100n });
  const first = await send();
  expect(first.replayed).toBe(false);
  expect(await send()).toEqual({ bytes: first.bytes, replayed: true });
});

test("the ids of two callers, and of two RPCs, do not meet", async () => {
  const requestId = fresh();
  const other = clientsOf(new GrpcClient(server, await tokenOf("another")).transport);
  const userId = await newUser(shop);
  await shop.balances.chargeBalance({ requestId, userId, amount: 1n });
  await other.balances.chargeBalance({ requestId, userId, amount: 2n });
  await shop.users.createUser({ requestId, name: "A buyer" });
  expect((await shop.balances.getBalance({ userId })).balance?.amount).toBe(3n);
});

test("an answer that is older than IDEMPOTENCY_TTL is forgotten, a younger one is not", async () => {
  const userId = await newUser(shop);
  const [old, young] = [1n, 2n].map((amount) => ({ requestId: fresh(), userId, amount }));
  for (const request of [old, young]) await client.raw(BalanceService.method.chargeBalance, request ?? {});
  const age = "update idempotency set create_time = now() - interval '61 minutes' where request_id = $1";
  await database.query(age, [old?.requestId]);
  // A server purges when it starts, and from then on.
  await serverOn(url, { IDEMPOTENCY_TTL: "1h" });
  const known = () => value(database, "select count(*)::int from idempotency where request_id = $1", old?.requestId);
  await expect.poll(known, { timeout: 10_000 }).toBe(0);
  const send = (request = young) => client.raw(BalanceService.method.chargeBalance, request ?? {});
  expect((await send(young)).replayed).toBe(true);
  expect((await send(old)).replayed).toBe(false);
  expect((await shop.balances.getBalance({ userId })).balance?.amount).toBe(4n);
});
