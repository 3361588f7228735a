/** Work in the background, while it fails and afterwards. */
import { once } from "node:events";
import { expect, onTestFinished, test, vi } from "vitest";
import { every } from "../../src/db/job.ts";
import { createDatabase } from "../support/database.ts";
import { createProxy } from "../support/proxy.ts";
import { open } from "./harness.ts";

test("an outage is reported once, with fewer and fewer attempts, and so is its end", async () => {
  const proxy = await createProxy(await createDatabase());
  const { db } = await open(proxy.url);
  const heard: string[] = [];
  const runs = { good: 0, all: 0 };
  const work = async () => {
    runs.all += 1;
    await db.read((em) => em.execute("select 1"));
    runs.good += 1;
    return false;
  };
  const job = every(10, work, {
    failed: (error) => heard.push((error as { reason: string }).reason),
    recovered: () => heard.push("recovered"),
  });
  onTestFinished(() => job.stop());
  await vi.waitFor(() => expect(runs.good).toBeGreaterThan(1), { timeout: 10_000, interval: 5 });
  proxy.refuse(true);
  proxy.cut();
  await vi.waitFor(() => expect(heard).toEqual(["DATABASE_UNAVAILABLE"]), { timeout: 10_000, interval: 5 });
  const before = runs.all;
  // At the pace of its interval there would be a hundred.
  await new Promise((resolve) => setTimeout(resolve, 1_000));
  expect(runs.all - before).toBeGreaterThan(2);
  expect(runs.all - before).toBeLessThan(10);
  expect(heard).toEqual(["DATABASE_UNAVAILABLE"]);
  proxy.refuse(false);
  await vi.waitFor(() => expect(heard).toEqual(["DATABASE_UNAVAILABLE", "recovered"]), { timeout: 10_000 });
  const good = runs.good;
  await vi.waitFor(() => expect(runs.good).toBeGreaterThan(good + 2), { timeout: 10_000, interval: 5 });
  expect(heard).toHaveLength(2);
});

test("stops at once, also in the middle of a long pause", async () => {
  const failed = Promise.withResolvers<void>();
  const job = every(60_000, () => Promise.reject(new Error("no")), {
    failed: () => failed.resolve(),
    recovered: () => {},
  });
  await failed.promise;
  await job.stop();
});

test("work that waits for somebody hears that it is to stop", async () => {
  const { promise: begun, resolve: begin } = Promise.withResolvers<void>();
  const work = async (signal: AbortSignal) => {
    begin();
    await once(signal, "abort");
    return true;
  };
  const job = every(60_000, work, { failed: () => {}, recovered: () => {} });
  await begun;
  await job.stop();
});
