/** The benchmark as a program: a short run of one scenario, on whatever machine this is. */
import { chmodSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { type AddressInfo, createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { Server, ServerCredentials } from "@grpc/grpc-js";
import { afterAll, describe, expect, onTestFinished, test } from "vitest";
import { grpcStatus, headerBlock } from "../bench/hpack.ts";
import { judgeLimits } from "../bench/limits.ts";
import type { LoadJob, LoadMark, LoadResult } from "../bench/load.ts";
import { type Cell, combined } from "../bench/measure.ts";
import { nextMessage, startModule, stop } from "../bench/process.ts";
import { judge } from "../bench/scenario.ts";
import { run } from "./support/processes.ts";

const MAIN = join(import.meta.dirname, "../bench/main.ts");
const scratch = mkdtempSync(join(tmpdir(), "doorbuster-bench-test-"));
// As root, the user `postgres` has to get into it; its database would be left elsewhere otherwise.
chmodSync(scratch, 0o755);

afterAll(() => rmSync(scratch, { recursive: true, force: true }));

/** Starts it with a temporary directory of its own, in which nothing may be left. */
function bench(...args: string[]) {
  return run(process.execPath, [MAIN, ...args], { env: { TMPDIR: scratch } });
}

describe("npm run bench", () => {
  test("a short run writes a table, JSON and a chart, finds nothing broken, and leaves nothing behind", async () => {
    const json = join(scratch, "result.json");
    const svg = join(scratch, "result.svg");
    const options = ["--seconds", "1", "--callers", "8", "--connections", "8", "--json", json, "--svg", svg];
    const { code, stdout, stderr } = await bench("--scenario", "checkout-hot", ...options).exited;
    expect(stderr).not.toContain("bench:");
    expect(code).toBe(0);
    expect(stdout).toContain("The audit after each measurement found nothing broken.");
    expect(stdout).toMatch(/checkout-hot +[\d.,]+x stepwise SQL +must reach 5x: (PASS|MISS)/);
    const { machine, scenarios } = JSON.parse(readFileSync(json, "utf8"));
    expect(machine).toMatchObject({ node: process.version, postgres: expect.stringMatching(/^\d+/) });
    expect(scenarios).toHaveLength(1);
    const [{ name, ratio, service, stepwise, oneShot }] = scenarios;
    expect(name).toBe("checkout-hot");
    expect(ratio).toBeCloseTo(service.perSecond / stepwise.perSecond);
    expect(service).toMatchObject({ callers: 8, errors: 0 });
    for (const side of [service, stepwise, oneShot]) {
      expect(side.perSecond).toBeGreaterThan(0);
      expect(side.p99).toBeGreaterThanOrEqual(side.p50);
    }
    expect(readFileSync(svg, "utf8")).toMatch(
      /^<svg [\s\S]*<rect class="service"[\s\S]*<rect class="oneShot"[\s\S]*<\/svg>\n$/,
    );
    rmSync(json);
    rmSync(svg);
    expect(readdirSync(scratch)).toEqual([]);
  }, 120_000);

  test("two processes, an overload and memory are in the table, the JSON and the chart", async () => {
    const json = join(scratch, "result.json");
    const svg = join(scratch, "result.svg");
    const options = ["--seconds", "1", "--callers", "64", "--json", json, "--svg", svg];
    const main = await bench(
      "--scenario",
      "place-alone",
      "--scenario",
      "place-hot-two",
      "--scenario",
      "overload",
      ...options,
    ).exited;
    expect(main.stderr).not.toContain("bench:");
    expect(main.code).toBe(0);
    expect(main.stdout).toMatch(/place-hot-two +2 processes +64 /);
    expect(main.stdout).toMatch(/place-hot-two +[\d.]+x one process +must reach 0.8x: (PASS|MISS) +aim 1x/);
    expect(main.stdout).toMatch(/overload +overloaded +20,000\/s /);
    expect(main.stdout).toMatch(/overload +[\d.]+x closed loop +must answer all, .+: (PASS|MISS) +aim 0.5x/);
    expect(main.stdout).toMatch(/memory idle +\d+ MB +must stay under 200 MB: (PASS|MISS)/);
    expect(main.stdout).toMatch(/memory 64 callers +\d+ MB +must stay under 600 MB: (PASS|MISS)/);
    const { limits, scenarios } = JSON.parse(readFileSync(json, "utf8"));
    expect(limits.map(({ name }: { name: string }) => name)).toEqual(["memory idle", "memory 64 callers"]);
    const [, two, overload] = scenarios;
    expect(two).toMatchObject({ name: "place-hot-two", service: { callers: 64 }, one: { callers: 64 } });
    expect(two.ratio).toBeCloseTo(two.service.perSecond / two.one.perSecond);
    expect(overload).toMatchObject({ name: "overload", service: { rate: 20_000 }, closed: { callers: 64, errors: 0 } });
    expect(overload.ratio).toBeCloseTo(overload.service.perSecond / overload.closed.perSecond);
    expect(readFileSync(svg, "utf8")).toMatch(/<rect class="one"[\s\S]*<rect class="closed"[\s\S]*<\/svg>\n$/);
    rmSync(json);
    rmSync(svg);
    expect(readdirSync(scratch)).toEqual([]);
  }, 240_000);

  test("streams that are open while orders are paid are counted, and each sale is followed to the last of them", async () => {
    const json = join(scratch, "result.json");
    const options = ["--seconds", "1", "--callers", "8", "--streams", "20", "--streams", "150", "--json", json];
    const main = await bench("--scenario", "watch", ...options).exited;
    expect(main.stderr).not.toContain("bench:");
    expect(main.code).toBe(0);
    expect(main.stdout).toMatch(/watch +without streams +8 +0 /);
    expect(main.stdout).toMatch(/watch +[\d.]+x without streams +must reach 0.9x: (PASS|MISS)/);
    const [watch] = JSON.parse(readFileSync(json, "utf8")).scenarios;
    const shown = watch.service.cells.map(({ streams, rate, lag }: Cell) => ({
      streams,
      rate,
      shown: lag && lag.p99 > 0,
    }));
    expect(shown).toEqual([
      { streams: 20, rate: 500, shown: true },
      { streams: 150, rate: 500, shown: true },
      { streams: 20, shown: true },
    ]);
    expect(watch.service).toMatchObject({ callers: 8, streams: 20 });
    expect(watch.unwatched).toMatchObject({ callers: 8, streams: 0 });
    rmSync(json);
  }, 240_000);

  test("a run that is interrupted stops everything that it has started", async () => {
    const main = bench("--scenario", "place-alone", "--seconds", "60");
    await main.printed(/Postgres \d+/);
    // Somewhere in the middle: which of its processes run by then does not matter.
    await delay(2_000);
    main.kill("SIGINT");
    expect((await main.exited).code).toBe(130);
    expect(readdirSync(scratch)).toEqual([]);
  });

  test("what it does not know, it says, with how to use it", async () => {
    const { code, stderr } = await bench("--scenario", "place-hott").exited;
    expect(code).toBe(1);
    expect(stderr).toContain("there is no scenario place-hott\nuse: npm run bench");
  });
});

describe("the parts that a wrong figure could come from", () => {
  const cell = { callers: 64, perSecond: 1_000, p50: 2, p99: 9, errors: 0, clientCpu: 10 };

  test("a ratio compares at the most connections, at the other's best, or one caller's p50", () => {
    const sides = {
      service: [
        { ...cell, callers: 1, p50: 3 },
        { ...cell, perSecond: 6_000 },
      ],
      stepwise: [
        { ...cell, callers: 1, perSecond: 500 },
        { ...cell, callers: 8, perSecond: 3_000 },
        { ...cell, callers: 64, perSecond: 1_000 },
      ],
    };
    const bar = { against: "stepwise", must: 5, aim: 10 } as const;
    expect(judge({ ...bar, at: "hot" }, sides)).toMatchObject({ ratio: 6, reached: true, aimed: false });
    expect(judge({ ...bar, at: "best" }, sides)).toMatchObject({ ratio: 2, reached: false });
    expect(judge({ ...bar, at: "alone", must: 2.5, aim: 1.5 }, sides)).toMatchObject({ ratio: 1.5, aimed: true });
    expect(judge({ ...bar, against: "oneShot", at: "hot" }, sides)).toBeUndefined();
  });

  test("an overload is met when all were answered, and nobody was refused otherwise than for it", () => {
    const bar = { against: "closed", at: "overload", aim: 0.5 } as const;
    const judged = (codes: Record<string, number>) =>
      judge(bar, { service: [{ ...cell, perSecond: 600, rate: 20_000, codes }], closed: [cell] });
    expect(judged({ ResourceExhausted: 9 })).toMatchObject({ ratio: 0.6, reached: true, aimed: true });
    expect(judged({})).toMatchObject({ reached: true });
    expect(judged({ ResourceExhausted: 9, UNANSWERED: 1 })).toMatchObject({ reached: false });
    expect(judged({ DeadlineExceeded: 1 })).toMatchObject({ reached: false });
  });

  test("memory is judged by the largest process, idle and with 64 callers in a closed loop", () => {
    const held = (serverIdle: number | undefined, serverMemory: number, others = {}) => ({
      ...{ ...cell, serverIdle, serverMemory },
      ...others,
    });
    const cells = [
      held(150, 300),
      held(199, 599),
      held(190, 900, { rate: 20_000 }),
      held(190, 900, { callers: 65 }),
      // Not the service.
      held(undefined, 900),
    ];
    const idle = { name: "memory idle", value: 199, unit: "MB", under: 200, must: true, reached: true };
    const busy = { ...idle, name: "memory 64 callers", value: 599, under: 600 };
    expect(judgeLimits(cells)).toEqual([idle, busy]);
    expect(judgeLimits([held(200, 100, { callers: 8 })])).toEqual([{ ...idle, value: 200, reached: false }]);
    expect(judgeLimits([cell])).toEqual([]);
  });

  test("streams are judged by their number: how late the last one is at a fixed rate, and what each of most holds", () => {
    const watched = (streams: number, p99: number, others = {}) => ({
      ...{ ...cell, rate: 500, streams, lag: { p50: 1, p99 }, serverIdle: 150, ...others },
    });
    const cells = [
      watched(1_000, 999),
      watched(10_000, 250, { streamKb: 29 }),
      watched(50, 5_000, { streamKb: 900 }),
      // As fast as can be, and not at the rate that the limit is for.
      watched(1_000, 5_000, { rate: undefined }),
    ];
    const ofStream = { name: "memory of a stream", value: 29, unit: "KB", under: 30, must: true, reached: true };
    const few = { ...ofStream, name: "sale to the last of 1,000 streams, p99", value: 999, unit: "ms", under: 1_000 };
    const many = { ...few, name: "sale to the last of 10,000 streams, p99", value: 250, under: 250 };
    const found = judgeLimits(cells as Cell[]).slice(1);
    expect(found).toEqual([ofStream, few, { ...many, must: false, reached: false }]);
  });

  test("headers are written as RFC 7541 says, and the status is found among those of an answer", () => {
    const block = headerBlock({ ":path": "/a", te: "trailers", authorization: "x".repeat(130) });
    const expected = ["8386", "04022f61", "00027465", "08747261696c657273", "0f08", "7f03", "78".repeat(130)].join("");
    expect(block.toString("hex")).toBe(expected);
    const answer = Buffer.concat([
      Buffer.from("88", "hex"),
      Buffer.from("9acac8b21234da8f", "hex"),
      Buffer.from("013885", "hex"),
    ]);
    expect(grpcStatus(Buffer.concat([Buffer.from("0088", "hex"), answer.subarray(1)]))).toBe(8);
    expect(grpcStatus(Buffer.from("88", "hex"))).toBe(-1);
  });
});

/** A gRPC server that sends back what it gets, after a while. Tells the most calls that it has had at a time. */
async function echo(latency = 0) {
  const keep = (bytes: Buffer): Buffer => bytes;
  const codec = {
    requestSerialize: keep,
    requestDeserialize: keep,
    responseSerialize: keep,
    responseDeserialize: keep,
  };
  const place = { path: "/shop.v1.OrderService/PlaceOrder", requestStream: false, responseStream: false, ...codec };
  const calls = { now: 0, most: 0 };
  const answer = async ({ request }: { request: Buffer }, callback: (error: null, bytes: Buffer) => void) => {
    calls.now += 1;
    calls.most = Math.max(calls.most, calls.now);
    await delay(latency);
    calls.now -= 1;
    callback(null, request);
  };
  const server = new Server();
  server.addService({ place }, { place: answer });
  onTestFinished(() => server.forceShutdown());
  const { promise, resolve, reject } = Promise.withResolvers<number>();
  const bound = (error: Error | null, port: number) => (error ? reject(error) : resolve(port));
  server.bindAsync("127.0.0.1:0", ServerCredentials.createInsecure(), bound);
  return { port: await promise, calls };
}

/** What the load generator makes of a job for a second. */
async function load(job: Pick<LoadJob, "ports" | "rate">): Promise<LoadResult> {
  const child = startModule(join(import.meta.dirname, "../bench/load.ts"));
  onTestFinished(() => stop(child));
  const timing = { warmup: 0, seconds: 1 };
  const others = { rpc: "place", callers: 64, users: 128, items: 1, secret: "s".repeat(32), echo: true } as const;
  child.send({ ...others, timing, ...job } satisfies LoadJob);
  for (;;) {
    const message = await nextMessage<LoadMark | LoadResult>(child, "the load generator");
    if (!("mark" in message)) return message;
  }
}

describe("the load generator", () => {
  test("shares its callers evenly between servers", async () => {
    const servers = [await echo(20), await echo(20)];
    const result = await load({ ports: servers.map(({ port }) => port) });
    expect(result).toMatchObject({ cell: { callers: 64, errors: 0 } });
    expect(servers.map(({ calls }) => calls.most)).toEqual([32, 32]);
  });

  test("counts in an open loop all that was due, however late it was answered, but as throughput what came in time", async () => {
    const { port } = await echo(1_500);
    const result = await load({ ports: [port], rate: 100 });
    const { cell } = result as Extract<LoadResult, { cell: unknown }>;
    expect(cell).toMatchObject({ perSecond: 0, errors: 0, dropped: 0 });
    expect(cell.p50).toBeGreaterThan(1_490);
    expect(cell.late).toBeGreaterThan(90);
  });

  test("fails when a server breaks off a closed loop, and tells so of an open one", async () => {
    const sockets = createServer((socket) => setTimeout(() => socket.destroy(), 300).unref());
    onTestFinished(() => void sockets.close());
    await new Promise<void>((resolve) => sockets.listen(0, "127.0.0.1", resolve));
    const { port } = sockets.address() as AddressInfo;
    expect(await load({ ports: [port] })).toEqual({ failed: "the server closed the connection" });
    const result = await load({ ports: [port], rate: 100 });
    expect(result).toMatchObject({ cell: { perSecond: 0, codes: { CONNECTION_LOST: 1 } }, answered: 0 });
    expect((result as Extract<LoadResult, { cell: unknown }>).cell.codes?.UNANSWERED).toBeGreaterThan(0);
  });
});

test("several measurements of the same are one: mean throughput and cost, median latencies, all errors", () => {
  const cell = (
    perSecond: number,
    p99: number,
    serverCpu: number | undefined,
    codes?: Record<string, number>,
  ): Cell => {
    const errors = Object.values(codes ?? {}).reduce((sum, count) => sum + count, 0);
    return { callers: 64, perSecond, p50: p99 / 2, p99, errors, ...(codes && { codes }), clientCpu: 10, serverCpu };
  };
  const cells = [
    cell(100, 8, 90),
    cell(300, 4, undefined, { Aborted: 1 }),
    cell(200, 90, 110, { Aborted: 2, RESET: 1 }),
  ];
  expect(combined(cells)).toEqual({
    ...{ callers: 64, perSecond: 200, p50: 4, p99: 8, errors: 4, codes: { Aborted: 3, RESET: 1 } },
    ...{ clientCpu: 10, serverCpu: 100, serverMemory: undefined },
  });
});
