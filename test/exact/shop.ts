/** A shop for tests: servers on one database, clients with tokens, and the data that a story needs. */
import { randomUUID } from "node:crypto";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { type Client, createClient, type Transport } from "@connectrpc/connect";
import { afterAll } from "vitest";
import { BalanceService } from "../../gen/shop/v1/balance_pb.ts";
import { CartService } from "../../gen/shop/v1/cart_pb.ts";
import { CouponService, type Discount } from "../../gen/shop/v1/coupon_pb.ts";
import { OrderService } from "../../gen/shop/v1/order_pb.ts";
import { PaymentService } from "../../gen/shop/v1/payment_pb.ts";
import { ProductService } from "../../gen/shop/v1/product_pb.ts";
import { RankingService } from "../../gen/shop/v1/ranking_pb.ts";
import { UserService } from "../../gen/shop/v1/user_pb.ts";
import { sign } from "../../src/rpc/auth.ts";
import { type Server, startServer, stopRunning } from "../support/processes.ts";

const JWT_SECRET = "a secret for tests, long enough to be one";

const scratch = mkdtempSync(join(tmpdir(), "doorbuster-exact-"));
afterAll(async () => {
  await stopRunning();
  rmSync(scratch, { recursive: true, force: true });
});

/** A server process on the database, with `env` on top of what all of them share. */
export function serverOn(databaseUrl: string, env: NodeJS.ProcessEnv = {}): Promise<Server> {
  return startServer({ databaseUrl, env: { JWT_SECRET, DATA_DIR: scratch, ...env } });
}

/** A token that may do everything, for any user; its subject is the scope of the request ids sent with it. */
export function tokenOf(subject = "test"): Promise<string> {
  return sign(Buffer.from(JWT_SECRET), { subject, roles: ["service", "admin"], ttl: "1h" });
}

export type Clients = Readonly<{
  users: Client<typeof UserService>;
  balances: Client<typeof BalanceService>;
  products: Client<typeof ProductService>;
  carts: Client<typeof CartService>;
  coupons: Client<typeof CouponService>;
  orders: Client<typeof OrderService>;
  payments: Client<typeof PaymentService>;
  ranking: Client<typeof RankingService>;
}>;

export function clientsOf(transport: Transport): Clients {
  return {
    users: createClient(UserService, transport),
    balances: createClient(BalanceService, transport),
    products: createClient(ProductService, transport),
    carts: createClient(CartService, transport),
    coupons: createClient(CouponService, transport),
    orders: createClient(OrderService, transport),
    payments: createClient(PaymentService, transport),
    ranking: createClient(RankingService, transport),
  };
}

/** A request id that nobody has used. */
export const fresh = () => randomUUID();

/** `count` things, made at once. */
export function many<T>(count: number, make: (index: number) => Promise<T>): Promise<T[]> {
  return Promise.all(Array.from({ length: count }, (_, index) => make(index)));
}

/** A user with `money` in the wallet. */
export async function newUser({ users, balances }: Clients, money = 0n): Promise<string> {
  const { user } = await users.createUser({ requestId: fresh(), name: "A buyer" });
  const userId = user?.id ?? "";
  if (money > 0n) await balances.chargeBalance({ requestId: fresh(), userId, amount: money });
  return userId;
}

/** Units in stock when a variant was made, by its id: what the check of the stock starts from. */
export type Stocks = Record<string, number>;

/** The id of a variant of a new product. Its stock is noted in `stocks`. */
export async function newVariant({ products }: Clients, stocks: Stocks, price: bigint, stock: number): Promise<string> {
  const variants = [{ name: "One size", price, stock }];
  const { product } = await products.createProduct({ requestId: fresh(), name: "A thing", variants });
  const variantId = product?.variants[0]?.id ?? "";
  stocks[variantId] = stock;
  return variantId;
}

/** The id of a new coupon that takes `amount` off and can be used for a day. */
export async function newCoupon({ coupons }: Clients, totalQuantity: number, amount = 100n): Promise<string> {
  const kind: Discount["kind"] = { case: "amount", value: amount };
  const validUntil = timestampFromMs(Date.now() + 86_400_000);
  const { coupon } = await coupons.createCoupon({
    requestId: fresh(),
    name: "A coupon",
    discount: { kind },
    totalQuantity,
    validUntil,
  });
  return coupon?.id ?? "";
}
