/** The live top: who watches gets the answer, and then each change of it; nothing is left behind when they go. */
import { randomUUIDv7 } from "node:crypto";
import { create } from "@bufbuild/protobuf";
import type { HandlerContext } from "@connectrpc/connect";
import { expect, onTestFinished, test, vi } from "vitest";
import { WatchTopProductsRequestSchema } from "../../gen/shop/v1/ranking_pb.ts";
import { rankingHandler } from "../../src/ranking/ranking.handler.ts";
import { Ranking } from "../../src/ranking/ranking.service.ts";
import type { Top } from "../../src/ranking/top.ts";
import { RankingWatch } from "../../src/ranking/watch.ts";
import { connect, open } from "../db/harness.ts";
import { createDatabase } from "../support/database.ts";

const soon = { timeout: 10_000, interval: 10 };
const HOUR = 3_600_000;
/** In the middle of an hour. */
const NOW = new Date("2026-11-27T12:30:00Z");

async function openRanking(now = NOW) {
  const url = await createDatabase();
  const clock = { now };
  const { db } = await open(url, { clock: () => clock.now });
  const client = await connect(url);
  const ranking = new Ranking(db);
  const failures: unknown[] = [];
  const watching = new RankingWatch((query) => ranking.top(query), {
    failed: (error) => failures.push(error),
    recovered: () => {},
  });
  // Ids of one millisecond come in any order.
  const ids = Array.from({ length: 5 }, () => randomUUIDv7())
    .sort()
    .values();
  /** Each one has a greater id than the one before. */
  const product = async (name: string): Promise<string> => {
    const id = ids.next().value ?? "";
    await client.query("insert into product values ($1, $2, '', now(), now(), 1)", [id, name]);
    await client.query(
      "insert into variant (id, product_id, position, product_name, name, price, stock, supplied) values ($1, $1, 1, $2, 'one', 1, 1, 1)",
      [id, name],
    );
    return id;
  };
  const sell = async (id: string, quantity: number, hoursAgo = 0): Promise<void> => {
    const hour = new Date(Math.floor(now.getTime() / HOUR) * HOUR - hoursAgo * HOUR);
    await client.query(
      `insert into ranking_bucket (variant_id, hour, product_id, quantity) values ($1, $2, $1, $3)
         on conflict (variant_id, hour) do update set quantity = ranking_bucket.quantity + excluded.quantity`,
      [id, hour, quantity],
    );
  };
  return { url, clock, ranking, watching, failures, product, sell };
}

/** Somebody who watches, with what they have got so far. */
function watch(watching: RankingWatch, limit = 5, days = 3) {
  const leaving = new AbortController();
  const got: Top[] = [];
  const ended = (async () => {
    for await (const top of watching.watch({ days, limit, byVariant: false }, leaving.signal)) got.push(top);
  })();
  onTestFinished(async () => {
    leaving.abort();
    await ended;
  });
  return { got, leave: () => leaving.abort(), ended };
}

const unitsOf = ({ products }: Top) => products.map(({ productName, unitsSold }) => `${productName} ${unitsSold}`);

test("the answer at once, and again when it has changed, to each who watches", async () => {
  const { watching, product, sell } = await openRanking();
  const [a, b] = [await product("a"), await product("b")];
  const first = watch(watching);
  await vi.waitFor(() => expect(first.got.map(unitsOf)).toEqual([[]]), soon);
  await sell(a, 2);
  await vi.waitFor(() => expect(first.got.map(unitsOf)).toEqual([[], ["a 2"]]), soon);
  const second = watch(watching);
  await vi.waitFor(() => expect(second.got.map(unitsOf)).toEqual([["a 2"]]), soon);
  await sell(b, 3);
  await vi.waitFor(() => expect(second.got.map(unitsOf)).toEqual([["a 2"], ["b 3", "a 2"]]), soon);
  await vi.waitFor(() => expect(first.got.at(-1)).toEqual(second.got.at(-1)), soon);
});

test("a change below the limit is none", async () => {
  const { watching, product, sell } = await openRanking();
  const [a, b] = [await product("a"), await product("b")];
  await sell(a, 5);
  const [one, two] = [watch(watching, 1), watch(watching, 2)];
  await vi.waitFor(() => expect([one.got.length, two.got.length]).toEqual([1, 1]), soon);
  await sell(b, 1);
  await vi.waitFor(() => expect(two.got.map(unitsOf)).toEqual([["a 5"], ["a 5", "b 1"]]), soon);
  expect(one.got).toHaveLength(1);
});

test("ties are ordered by id, and the hour in which the time began counts as a whole, to the millisecond", async () => {
  const { clock, ranking, product, sell } = await openRanking();
  const ids = [await product("first"), await product("second"), await product("third")];
  await sell(ids[2] as string, 4);
  await sell(ids[0] as string, 4);
  await sell(ids[1] as string, 4, 24);
  const top = async () =>
    (await ranking.top({ days: 1, limit: 5, byVariant: false })).products.map((it) => it.productName);
  expect(await top()).toEqual(["first", "second", "third"]);
  // 24 hours back from 12:59:59.999 is in the hour of the sale; from 13:00 it no longer is.
  clock.now = new Date("2026-11-27T12:59:59.999Z");
  expect(await top()).toEqual(["first", "second", "third"]);
  clock.now = new Date("2026-11-27T13:00:00Z");
  expect(await top()).toEqual(["first", "third"]);
});

test("an answer changes by the time alone", async () => {
  const { clock, watching, product, sell } = await openRanking();
  await sell(await product("a"), 1, 24);
  const watcher = watch(watching, 5, 1);
  await vi.waitFor(() => expect(watcher.got.map(unitsOf)).toEqual([["a 1"]]), soon);
  clock.now = new Date("2026-11-27T13:00:00Z");
  await vi.waitFor(() => expect(watcher.got.map(unitsOf)).toEqual([["a 1"], []]), soon);
});

test("one query serves all who watch the same, and none is left when they have gone", async () => {
  const { ranking, watching, failures } = await openRanking();
  const top = vi.spyOn(ranking, "top");
  const watchers = Array.from({ length: 1_000 }, () => watch(watching));
  await vi.waitFor(() => expect(watchers.every(({ got }) => got.length === 1)).toBe(true), soon);
  expect(watching.watchers).toBe(1_000);
  expect(top.mock.calls.length).toBeLessThan(20);
  for (const { leave } of watchers) leave();
  await Promise.all(watchers.map(({ ended }) => ended));
  expect(watching.watchers).toBe(0);
  // The query that was under way may still end; no other one comes.
  await new Promise((resolve) => setTimeout(resolve, 700));
  top.mockClear();
  await new Promise((resolve) => setTimeout(resolve, 700));
  expect(top).not.toHaveBeenCalled();
  expect(failures).toEqual([]);
});

test("all who watch with one limit get one answer, and one message", async () => {
  const { watching, ranking, product, sell } = await openRanking();
  const watchers = [watch(watching), watch(watching), watch(watching, 1)];
  const leaving = new AbortController();
  const handler = rankingHandler(ranking, watching);
  const streams = [0, 1].map(() =>
    (
      handler.watchTopProducts(create(WatchTopProductsRequestSchema), {
        signal: leaving.signal,
      } as HandlerContext) as AsyncIterable<object>
    )[Symbol.asyncIterator](),
  );
  for (const stream of streams) await stream.next();
  await sell(await product("a"), 1);
  for (const { got } of watchers) await vi.waitFor(() => expect(got).toHaveLength(2), soon);
  const [one, other, shorter] = watchers.map(({ got }) => got[1]);
  expect(other).toBe(one);
  expect(shorter).toEqual(one);
  const [message, same] = await Promise.all(streams.map((stream) => stream.next()));
  expect(message?.value).toMatchObject({ products: [{ rank: 1, unitsSold: 1n }] });
  expect(same?.value).toBe(message?.value);
  leaving.abort();
  await Promise.all(streams.map((stream) => stream.return?.()));
});

test("who has gone before it begins asks for nothing", async () => {
  const { ranking, watching } = await openRanking();
  const top = vi.spyOn(ranking, "top").mockRejectedValue(new Error("the process would end by it"));
  const gone = watching.watch({ days: 3, limit: 5, byVariant: false }, AbortSignal.abort());
  expect(await gone.next()).toEqual({ done: true, value: undefined });
  expect(top).not.toHaveBeenCalled();
  expect(watching.watchers).toBe(0);
});

test("however many different answers are watched, one is asked for at a time", async () => {
  const { ranking, watching, product, sell } = await openRanking();
  const real = ranking.top.bind(ranking);
  const running = { now: 0, most: 0 };
  vi.spyOn(ranking, "top").mockImplementation(async (query) => {
    running.most = Math.max(running.most, ++running.now);
    return real(query).finally(() => running.now--);
  });
  const watchers = Array.from({ length: 30 }, (_, index) => watch(watching, 5, index + 1));
  for (const { got } of watchers) await vi.waitFor(() => expect(got).toHaveLength(1), soon);
  await sell(await product("a"), 1);
  watching.hint();
  for (const { got } of watchers) await vi.waitFor(() => expect(got).toHaveLength(2), soon);
  expect(running.most).toBe(1);
});

test("an answer that fails or never comes keeps nobody else from theirs", async () => {
  const { ranking, product, sell } = await openRanking();
  const failures: unknown[] = [];
  const broken = new Set<number>();
  const answers: Record<number, () => Promise<Top>> = {
    1: () => Promise.reject(new Error("it fails")),
    2: () => new Promise(() => {}),
  };
  const watching = new RankingWatch(
    (query) => (broken.has(query.days) && answers[query.days]?.()) || ranking.top(query),
    { failed: (error) => failures.push(error), recovered: () => failures.push("recovered") },
    2_000,
  );
  const watchers = [1, 2, 3].map((days) => watch(watching, 5, days));
  for (const { got } of watchers) await vi.waitFor(() => expect(got).toHaveLength(1), soon);
  for (const days of [1, 2]) broken.add(days);
  await vi.waitFor(() => expect(failures).toHaveLength(2), soon);
  await sell(await product("a"), 1);
  await vi.waitFor(() => expect(watchers.map(({ got }) => got.length)).toEqual([1, 1, 2]), soon);
  // Who begins now is told.
  const late = new RankingWatch(answers[1] as never, { failed: () => {}, recovered: () => {} });
  const begin = late.watch({ days: 1, limit: 5, byVariant: false }, AbortSignal.timeout(20_000));
  await expect(begin.next()).rejects.toThrow("it fails");
  expect(late.watchers).toBe(0);
  broken.clear();
  await vi.waitFor(() => expect(watchers.map(({ got }) => got.length)).toEqual([2, 2, 2]), soon);
  const told = [expect.any(Error), expect.any(Error), "recovered", "recovered"];
  await vi.waitFor(() => expect(failures).toEqual(told), soon);
});

test("changes come less often when sending them takes long", async () => {
  const { ranking, product, sell } = await openRanking();
  const a = await product("a");
  const watching = new RankingWatch(
    async (query) => {
      await sell(a, 1);
      return ranking.top(query);
    },
    { failed: () => {}, recovered: () => {} },
  );
  const times: number[] = [];
  for await (const _ of watching.watch({ days: 3, limit: 5, byVariant: false }, AbortSignal.timeout(20_000))) {
    times.push(performance.now());
    if (times.length === 4) break;
    const end = performance.now() + 100;
    while (performance.now() < end);
  }
  // The first one had nobody before it.
  for (let at = 1; at < times.length; at += 1) {
    expect((times[at] as number) - (times[at - 1] as number)).toBeGreaterThan(900);
  }
});

test("who reads slowly gets the latest answer, and not each that there was", async () => {
  const { watching, product, sell } = await openRanking();
  const a = await product("a");
  const slow = watching.watch({ days: 3, limit: 5, byVariant: false }, AbortSignal.timeout(20_000));
  expect(unitsOf((await slow.next()).value as Top)).toEqual([]);
  const quick = watch(watching);
  for (let sold = 1; sold <= 3; sold += 1) {
    await sell(a, 1);
    await vi.waitFor(() => expect(unitsOf(quick.got.at(-1) as Top)).toEqual([`a ${sold}`]), soon);
  }
  expect(unitsOf((await slow.next()).value as Top)).toEqual(["a 3"]);
  await slow.return();
});
