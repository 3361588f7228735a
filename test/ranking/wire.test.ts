/** The ranking as callers of both doors get it: what they ask for, and as it changes on another process. */
import { beforeAll, expect, onTestFinished, test, vi } from "vitest";
import { RankingGroup, RankingService } from "../../gen/shop/v1/ranking_pb.ts";
import { connect } from "../db/harness.ts";
import { GrpcClient } from "../exact/clients.ts";
import { clientsOf, fresh, newUser, newVariant, serverOn, tokenOf } from "../exact/shop.ts";
import { connectClient, grpcClient } from "../rpc/clients.ts";
import { createDatabase } from "../support/database.ts";
import type { Server } from "../support/processes.ts";
import { addSale, HOUR } from "./sales.ts";

const { listTopProducts, watchTopProducts } = RankingService.method;
const soon = { timeout: 10_000, interval: 20 };

let token: string;
beforeAll(async () => {
  token = await tokenOf();
});

/** Clients of a server, until the test has ended. */
function clientsOn(server: Server) {
  const client = new GrpcClient(server, token);
  const doors = [grpcClient(server.grpcPort), connectClient(server.httpPort)];
  onTestFinished(async () => {
    for (const one of [client, ...doors]) one.close();
    await server.stop();
  });
  return { shop: clientsOf(client.transport), doors };
}

test("the days, how many, and products or variants are what the caller asks for, or 3, 5, and products", async () => {
  const url = await createDatabase();
  const { shop, doors } = clientsOn(await serverOn(url));
  const names = ["a", "b", "c", "d", "e", "f"];
  const variants = names.map((name) => ({ name, price: 1n, stock: 1 }));
  const { product } = await shop.products.createProduct({ requestId: fresh(), name: "thing", variants });
  const client = await connect(url);
  const ago = (days: number) => new Date(Date.now() - days * 24 * HOUR);
  // The first variant sells least.
  const lines = (product?.variants ?? []).map(({ id }, index) => ({
    variant_id: id,
    product_id: product?.id ?? "",
    quantity: index + 1,
  }));
  const times = [0, 2, 5, 20];
  for (const days of times) await addSale(client, { payTime: ago(days), lines });
  const each = lines.reduce((sum, { quantity }) => sum + quantity, 0);
  const [variant, byProduct] = [RankingGroup.VARIANT, RankingGroup.PRODUCT];
  const of = (sales: number, count: number) =>
    names
      .toReversed()
      .slice(0, count)
      .map((name, index) => `${index + 1} thing ${name} ${sales * (names.length - index)}`);
  const asked = [
    [{}, [`1 thing  ${2 * each}`]],
    [{ group: byProduct, days: 1 }, [`1 thing  ${each}`]],
    [{ days: 7 }, [`1 thing  ${3 * each}`]],
    [{ days: 30 }, [`1 thing  ${4 * each}`]],
    [{ group: variant }, of(2, 5)],
    [{ group: variant, days: 1, limit: 6 }, of(1, 6)],
    [{ group: variant, days: 30, limit: 2 }, of(4, 2)],
  ] as const;
  for (const door of doors) {
    for (const [request, expected] of asked) {
      const shown = (answer: { products: readonly Shown[] }) => answer.products.map(textOf);
      const listed = async () => shown((await door.unary(listTopProducts, request, { token })).message);
      await vi.waitFor(async () => expect(await listed(), door.name).toEqual(expected), soon);
      const stream = door.stream(watchTopProducts, request, { token })[Symbol.asyncIterator]();
      const { value } = await stream.next();
      expect(shown(value), door.name).toEqual(expected);
      await stream.return?.();
      const ids = value.products.map(({ productId, variantId }: Shown) => [productId, variantId !== ""]);
      const grouped = "group" in request && request.group === variant;
      expect(ids).toEqual(expected.map(() => [product?.id, grouped]));
    }
  }
});

type Shown = {
  rank: number;
  productId: string;
  variantId: string;
  productName: string;
  variantName: string;
  unitsSold: bigint;
};
const textOf = ({ rank, productName, variantName, unitsSold }: Shown) =>
  `${rank} ${productName} ${variantName} ${unitsSold}`;

test("a purchase on one process shows in the streams of another one, through both doors, when that is notified", async () => {
  const url = await createDatabase();
  const [{ shop }, { doors }] = [clientsOn(await serverOn(url)), clientsOn(await serverOn(url))];
  const variantId = await newVariant(shop, {}, 10n, 100);
  const userId = await newUser(shop, 1_000n);
  const streams = doors.map((door) => door.stream(watchTopProducts, {}, { token })[Symbol.asyncIterator]());
  onTestFinished(async () => {
    for (const stream of streams) await stream.return?.();
  });
  for (const stream of streams) expect((await stream.next()).value?.products).toEqual([]);
  const listening =
    "select query from pg_stat_activity where application_name = 'doorbuster listen' and datname = current_database()";
  const { rows } = await (await connect(url)).query(listening);
  expect(rows).toEqual([{ query: "listen doorbuster_ranking" }, { query: "listen doorbuster_ranking" }]);
  let quickest = Number.POSITIVE_INFINITY;
  // Who only looks now and then sees each change half a second after the one before.
  for (let sold = 1; quickest > 400; sold += 1) {
    expect(sold).toBeLessThan(20);
    const began = performance.now();
    await shop.orders.checkout({ requestId: fresh(), userId, lines: [{ variantId, quantity: 1 }] });
    for (const stream of streams) {
      expect((await stream.next()).value?.products).toMatchObject([{ rank: 1, unitsSold: BigInt(sold) }]);
    }
    const took = performance.now() - began;
    expect(took).toBeLessThan(5_000);
    // Of the first one nobody knows when it was looked for.
    if (sold > 1) quickest = Math.min(quickest, took);
  }
}, 60_000);
