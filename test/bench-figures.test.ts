/** The parts of the benchmark that a wrong figure could come from. */
import { describe, expect, test } from "vitest";
import { grpcStatus, headerBlock } from "../bench/hpack.ts";
import { judgeLimits } from "../bench/limits.ts";
import { type Cell, combined } from "../bench/measure.ts";
import { judge } from "../bench/scenario.ts";

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
