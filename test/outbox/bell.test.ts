/** A bell that many wait for again and again. */
import { getEventListeners } from "node:events";
import { expect, test } from "vitest";
import { Bell } from "../../src/outbox/bell.ts";

const timers = () => process.getActiveResourcesInfo().filter((kind) => kind === "Timeout").length;
const MINUTE = 60_000;

test.each([
  ["when it rings", (bell: Bell) => bell.ring(), MINUTE],
  ["when their time is over", () => {}, 1],
  ["when they leave", (_bell: Bell, leaving: AbortController) => leaving.abort(), MINUTE],
] as const)("those who have waited leave neither listener nor timer behind: %s", async (_when, end, limit) => {
  const bell = new Bell();
  const before = timers();
  for (let round = 0; round < 100; round += 1) {
    const leaving = new AbortController();
    const waiting = bell.wait(bell.rings, leaving.signal, limit);
    end(bell, leaving);
    await waiting;
    expect(getEventListeners(leaving.signal, "abort")).toEqual([]);
  }
  // Those of the test runner may come and go.
  expect(timers() - before).toBeLessThan(10);
});

test("it is heard by who began to wait before it rang, and by who was about to", async () => {
  const bell = new Bell();
  const { signal } = new AbortController();
  const seen = bell.rings;
  const waiting = bell.wait(seen, signal);
  bell.ring();
  await waiting;
  await bell.wait(seen, signal);
  await bell.wait(bell.rings, AbortSignal.abort());
  expect(bell.rings).toBe(1);
});
