/** The real service with its real clients, and the little stories that tests need: a user with money, a paid order. */
import { randomUUIDv7 } from "node:crypto";
import type {
  DescMessage,
  DescMethodServerStreaming,
  DescMethodUnary,
  MessageInitShape,
  MessageShape,
} from "@bufbuild/protobuf";
import { Client } from "pg";
import { afterAll } from "vitest";
import { BalanceService } from "../../gen/shop/v1/balance_pb.ts";
import { CouponService, type Discount } from "../../gen/shop/v1/coupon_pb.ts";
import { OrderService } from "../../gen/shop/v1/order_pb.ts";
import { PaymentMethod, PaymentService } from "../../gen/shop/v1/payment_pb.ts";
import { ProductService } from "../../gen/shop/v1/product_pb.ts";
import { UserService } from "../../gen/shop/v1/user_pb.ts";
import { sign, type TokenClaims } from "../../src/rpc/auth.ts";
import { connectClient, type DoorClient, grpcClient } from "../rpc/clients.ts";
import { createDatabase } from "../support/database.ts";
import { startServer } from "../support/processes.ts";

const JWT_SECRET = "a secret of the contract tests, long enough";

/** Limits of the server under test, in minor units. */
export const MAX_CHARGE = 1_000_000n;
export const MAX_BALANCE = 3_000_000n;

export type Method = DescMethodUnary | DescMethodServerStreaming;

/** A token signed as the service expects it, or with another secret. */
export function token(roles: TokenClaims["roles"], subject = "tests", ttl = "1h", secret = JWT_SECRET) {
  return sign(Buffer.from(secret), { subject, roles, ttl });
}

/** Allowed to do everything for everybody. */
export const trusted = await token(["admin", "service"]);

/** A request id, or an id of nothing. */
export const fresh = (): string => randomUUIDv7();

/** Sends a request through a door and answers the message; of a stream, the first one. */
export async function ask(door: DoorClient, method: Method, request: object, bearer: string | undefined) {
  const options = { token: bearer };
  if (method.methodKind === "unary") return door.unary(method, request as MessageInitShape<DescMessage>, options);
  for await (const message of door.stream(method, request as MessageInitShape<DescMessage>, options)) {
    return { message, header: () => null };
  }
  throw new Error("the stream ended without a message");
}

export type Shop = Awaited<ReturnType<typeof openShop>>;

/** Starts the service on a database of its own; it is stopped after the test file. */
export async function openShop() {
  const databaseUrl = await createDatabase();
  const server = await startServer({
    databaseUrl,
    env: { JWT_SECRET, MAX_CHARGE: String(MAX_CHARGE), MAX_BALANCE: String(MAX_BALANCE) },
  });
  const sql = new Client({ connectionString: databaseUrl });
  await sql.connect();
  const grpc = grpcClient(server.grpcPort);
  const doors: DoorClient[] = [grpc, connectClient(server.httpPort), connectClient(server.httpPort, false)];
  afterAll(async () => {
    for (const door of doors) door.close();
    await sql.end();
    await server.stop();
  });

  async function call<I extends DescMessage, O extends DescMessage>(
    method: DescMethodUnary<I, O>,
    request: MessageInitShape<I>,
  ): Promise<MessageShape<O>> {
    return (await grpc.unary(method, request, { token: trusted })).message;
  }
  return { ...server, doors, grpc, sql, call, ...stories(call), fingerprint: await fingerprints(sql) };
}

type CallRpc = <I extends DescMessage, O extends DescMessage>(
  method: DescMethodUnary<I, O>,
  request: MessageInitShape<I>,
) => Promise<MessageShape<O>>;

type Time = ReturnType<typeof inDays>;
type CouponValues = {
  discount?: { kind: Discount["kind"] };
  totalQuantity?: number;
  perUserLimit?: number;
  minOrderAmount?: bigint;
  validFrom?: Time;
  validUntil?: Time;
};

function stories(call: CallRpc) {
  /** A user, with that much in the wallet. Answers the id. */
  async function user(balance = 0n): Promise<string> {
    const { user } = await call(UserService.method.createUser, { requestId: fresh(), name: "Ada" });
    const userId = user?.id ?? "";
    if (balance > 0n) await call(BalanceService.method.chargeBalance, { requestId: fresh(), userId, amount: balance });
    return userId;
  }

  /** A product of one variant. */
  async function product(values: { price?: bigint; stock?: number } = {}) {
    const { price = 1_000n, stock = 100 } = values;
    const { product } = await call(ProductService.method.createProduct, {
      requestId: fresh(),
      name: "Mug",
      variants: [{ name: "Blue", price, stock }],
    });
    return { productId: product?.id ?? "", variantId: product?.variants[0]?.id ?? "" };
  }

  /** A coupon of 100 off, unless said otherwise. */
  async function coupon(values: CouponValues = {}): Promise<string> {
    const { coupon } = await call(CouponService.method.createCoupon, {
      requestId: fresh(),
      name: "100 off",
      discount: { kind: { case: "amount", value: 100n } },
      totalQuantity: 10,
      validUntil: inDays(1),
      ...values,
    });
    return coupon?.id ?? "";
  }

  /** A coupon in the hand of a user. Answers the id of the piece. */
  async function issued(userId: string, values: CouponValues = {}): Promise<string> {
    const couponId = await coupon(values);
    const claimed = await call(CouponService.method.claimCoupon, { requestId: fresh(), userId, couponId });
    return claimed.issuedCoupon?.id ?? "";
  }

  /** An order of one unit that waits for its payment. */
  async function placed(balance = 5_000n, userId?: string) {
    const buyer = userId ?? (await user(balance));
    const { variantId } = await product();
    const { order } = await call(OrderService.method.placeOrder, {
      requestId: fresh(),
      userId: buyer,
      lines: [{ variantId, quantity: 1 }],
    });
    return { userId: buyer, variantId, orderId: order?.id ?? "" };
  }

  /** An order of one unit that is paid. */
  async function paid() {
    const order = await placed();
    const { userId, orderId } = order;
    const request = { requestId: fresh(), userId, orderId, method: PaymentMethod.BALANCE };
    const { payment } = await call(PaymentService.method.payOrder, request);
    return { ...order, paymentId: payment?.id ?? "" };
  }

  return { user, product, coupon, issued, placed, paid };
}

/** A time that many days from now, whole seconds. */
export function inDays(days: number): { seconds: bigint; nanos: number } {
  return { seconds: BigInt(Math.floor(Date.now() / 1_000) + days * 86_400), nanos: 0 };
}

/**
 * Makes the function that says which row versions there are, as one text. The ranking is left out: it follows the orders
 * in the background.
 */
async function fingerprints(sql: Client): Promise<() => Promise<string>> {
  const { rows } = await sql.query<{ name: string }>(
    `select table_name as name from information_schema.tables
      where table_schema = current_schema() and table_type = 'BASE TABLE' and table_name not like 'ranking%'
        and table_name <> 'event_reader'`,
  );
  const each = rows.map(
    ({ name }) =>
      `select count(*) || '/' || coalesce(sum(hashtextextended(ctid::text || xmin::text, 0)), 0) as rows from "${name}"`,
  );
  return async () => {
    const found = await sql.query<{ rows: string }>(each.join(" union all "));
    return found.rows.map((row) => row.rows).join();
  };
}
