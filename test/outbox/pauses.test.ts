/** How long an event that was not taken, and a sink that takes nothing, are left alone. */
import { expect, test } from "vitest";
import { pauseAfter, shortestPauseAfter } from "../../src/outbox/undelivered.ts";

test("pauses double from half a second to half a minute, and up to as much again is added by chance", () => {
  expect([1, 2, 3, 6, 7, 100].map(shortestPauseAfter)).toEqual([500, 1_000, 2_000, 16_000, 30_000, 30_000]);
  for (const [attempts, shortest] of [
    [1, 500],
    [3, 2_000],
    [100, 30_000],
  ] as const) {
    const pauses = Array.from({ length: 200 }, () => pauseAfter(attempts));
    expect(Math.min(...pauses)).toBeGreaterThanOrEqual(shortest);
    expect(Math.max(...pauses)).toBeLessThanOrEqual(2 * shortest);
    // They that failed together do not come again together.
    expect(Math.max(...pauses) - Math.min(...pauses)).toBeGreaterThan(shortest / 2);
  }
});
