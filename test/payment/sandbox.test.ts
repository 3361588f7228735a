/** The sandbox keeps its books as a gateway would: once a key, whoever asks, also after a restart. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, test } from "vitest";
import { answerWithin } from "../../src/payment/gateway.ts";
import { SandboxGateway } from "../../src/payment/sandbox.ts";

const scratch = mkdtempSync(join(tmpdir(), "doorbuster-sandbox-"));
afterAll(() => rmSync(scratch, { recursive: true, force: true }));

const never = new AbortController().signal;
const chargeOf = (key: string, token: string) => ({ key, token, amount: 500n, currency: "KRW" });

test("a key is charged once by any number of processes, and a restart forgets nothing", async () => {
  const gateways = Array.from({ length: 8 }, () => new SandboxGateway(join(scratch, "once")));
  const answers = await Promise.all(gateways.map((gateway) => gateway.charge(chargeOf("a", "ok"), never)));
  expect(new Set(answers.map((answer) => JSON.stringify(answer))).size).toBe(1);
  const restarted = new SandboxGateway(join(scratch, "once"));
  expect(await restarted.retrieve("a")).toEqual(answers[0]);
  expect(await restarted.charge(chargeOf("a", "decline"), never)).toEqual(answers[0]);
  expect(await restarted.entries()).toHaveLength(1);
});

test("asking for a key that was never sent closes it", async () => {
  const gateway = new SandboxGateway(join(scratch, "closed"));
  expect(await gateway.retrieve("b")).toMatchObject({ outcome: "declined" });
  expect(await gateway.charge(chargeOf("b", "ok"), never)).toMatchObject({ outcome: "declined" });
});

test("silence and a lost connection are unknown, and the books tell", async () => {
  const gateway = new SandboxGateway(join(scratch, "silent"));
  const charge = (key: string, token: string) =>
    answerWithin(50, (signal) => gateway.charge(chargeOf(key, token), signal));
  expect(await charge("c", "hang")).toMatchObject({ outcome: "unknown" });
  expect(await charge("d", "hang-approved")).toMatchObject({ outcome: "unknown" });
  expect(await charge("e", "reset")).toMatchObject({ outcome: "unknown" });
  expect(await gateway.retrieve("c")).toMatchObject({ outcome: "declined" });
  expect(await gateway.retrieve("d")).toMatchObject({ outcome: "approved" });
  expect(await gateway.retrieve("e")).toMatchObject({ outcome: "approved" });
});

test("a refund is made once a key, and only of money that was taken", async () => {
  const gateway = new SandboxGateway(join(scratch, "refund"));
  await gateway.charge(chargeOf("f", "ok"), never);
  const refund = { refundKey: "f-refund", key: "f", amount: 500n };
  expect(await gateway.refund(refund)).toEqual(await gateway.refund(refund));
  const refused = { outcome: "refused", code: "no_such_money" };
  expect(await gateway.refund({ ...refund, refundKey: "f-more", amount: 1n })).toEqual(refused);
  await gateway.charge(chargeOf("g", "decline"), never);
  expect(await gateway.refund({ ...refund, refundKey: "g-refund", key: "g" })).toEqual(refused);
});

test("parts are given back up to what was taken", async () => {
  const gateway = new SandboxGateway(join(scratch, "parts"));
  await gateway.charge(chargeOf("h", "ok"), never);
  const part = (refundKey: string, amount: bigint) => gateway.refund({ refundKey, key: "h", amount });
  expect(await part("h1", 200n)).toMatchObject({ outcome: "refunded" });
  expect(await part("h2", 301n)).toMatchObject({ outcome: "refused" });
  expect(await part("h3", 300n)).toMatchObject({ outcome: "refunded" });
});
