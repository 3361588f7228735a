/** The benchmark as a program: a short run of one scenario, on whatever machine this is. */
import { chmodSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { type AddressInfo, createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { Server, ServerCredentials } from "@grpc/grpc-js";
import { afterAll, describe, expect, onTestFinished, test } from "vitest";
import type { LoadJob, LoadMark, LoadResult } from "../bench/load.ts";
import type { Cell } from "../bench/measure.ts";
import { nextMessage, startModule, stop } from "../bench/process.ts";
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
