/** The same request id more than once: in one batch, in two, in two processes. */
import { randomUUID } from "node:crypto";
import { beforeEach, describe, expect, test, vi } from "vitest";
import { type Command, Replayed, touch, type Write } from "../../src/db/command.ts";
import type { Database } from "../../src/db/database.ts";
import { DomainError } from "../../src/error.ts";
import { Variant } from "../../src/product/product.entity.ts";
import { createDatabase } from "../support/database.ts";
import { addVariants, callOf, holdVariant, open, type Seen, stockOf, takeOne } from "./harness.ts";

const url = await createDatabase();
const STOCK = 10;

let db: Database;
let seen: Seen;
let id: string;

beforeEach(async () => {
  ({ db, seen } = await open(url));
  [id = ""] = await addVariants(db, STOCK);
  seen.committed.length = 0;
});

/** The response, and whether it was the first answer or that answer once more. */
async function send(call: Write, command: Command<unknown> = takeOne([id]), to = db): Promise<string> {
  try {
    return `first ${Buffer.from(call.encode(await to.write(call, command)))}`;
  } catch (error) {
    if (error instanceof Replayed) return `replayed ${Buffer.from(error.response)}`;
    if (error instanceof DomainError) return error.reason;
    throw error;
  }
}

describe("a request id that comes twice in one batch", () => {
  test("has one effect, and one answer for both", async () => {
    const requestId = randomUUID();
    const answers = await Promise.all([
      send(callOf(requestId, "a")),
      send(callOf()),
      send(callOf(requestId, "a")),
      send(callOf(requestId, "a")),
    ]);
    expect(answers).toEqual(["first [9]", "first [8]", "replayed [9]", "replayed [9]"]);
    expect(seen.committed.map(({ size }) => size)).toEqual([4]);
    expect(await stockOf(db, id)).toBe(8);
    expect(await send(callOf(requestId, "a"))).toBe("replayed [9]");
  });

  test("and with other content is REQUEST_ID_REUSED", async () => {
    const requestId = randomUUID();
    const answers = await Promise.all([send(callOf(requestId, "a")), send(callOf(requestId, "b"))]);
    expect(answers).toEqual(["first [9]", "REQUEST_ID_REUSED"]);
    expect(await stockOf(db, id)).toBe(9);
    expect(await send(callOf(requestId, "b"))).toBe("REQUEST_ID_REUSED");
  });

  test("is decided anew when the first was refused", async () => {
    const requestId = randomUUID();
    const taken = (index: number): Command<unknown> => ({
      touches: [touch(Variant, { id })],
      decide: (tx) => {
        tx.get(Variant, { id }).take(1);
        if (index === 1) throw new DomainError("INSUFFICIENT_BALANCE", "not yet");
        return index;
      },
    });
    const call = callOf(requestId, "a");
    const answers = await Promise.all([1, 2, 3].map((index) => send(call, taken(index))));
    expect(answers).toEqual(["INSUFFICIENT_BALANCE", "first 2", "replayed 2"]);
    expect(seen.committed.map(({ size }) => size)).toEqual([3]);
    expect(await stockOf(db, id)).toBe(9);
  });

  test("belongs to its caller and its RPC", async () => {
    const call = callOf("1", "a");
    const answers = await Promise.all([
      send(call),
      send({ ...call, scope: "somebody else" }),
      send({ ...call, rpc: "shop.v1.Test/Other" }),
      send(call),
    ]);
    expect(answers).toEqual(["first [9]", "first [8]", "first [7]", "replayed [9]"]);
  });

  test("is told apart from one that only looks alike", async () => {
    const { rpc } = callOf();
    const answers = await Promise.all([
      send({ ...callOf("a", "1"), scope: `b,${rpc},c` }),
      send({ ...callOf(`a,${rpc},b`, "2"), scope: "c" }),
    ]);
    expect(answers).toEqual(["first [9]", "first [8]"]);
  });
});

describe("a request id that is sent again", () => {
  test("while the first is being committed waits for its answer", async () => {
    const call = callOf(randomUUID(), "a");
    const held = await holdVariant(url, id);
    const first = send(call);
    await held.waiting(1);
    const second = send(call);
    await held.release();
    expect(await Promise.all([first, second])).toEqual(["first [9]", "replayed [9]"]);
  });

  test("to another process while the first is being committed has one effect, and the first answer", async () => {
    const { db: other } = await open(url);
    const call = callOf(randomUUID(), "a");
    const held = await holdVariant(url, id);
    const both = [send(call)];
    await held.waiting(1);
    both.push(send(call, takeOne([id]), other));
    await held.waiting(2);
    await held.release();
    const answers = await Promise.all(both);
    expect(answers.toSorted()).toEqual(["first [9]", "replayed [9]"]);
    expect(await stockOf(db, id)).toBe(9);
  });

  test("to two processes at once, a hundred times, has one effect each", async () => {
    const { db: other } = await open(url);
    const [hot = ""] = await addVariants(db, 1_000);
    const command = takeOne([hot]);
    const answers = await Promise.all(
      Array.from({ length: 100 }, async () => {
        const call = callOf(randomUUID(), "a");
        const twins = await Promise.all([send(call, command), send(call, command, other)]);
        return twins.map((answer) => answer.split(" "));
      }),
    );
    for (const [a, b] of answers) {
      expect([a?.[0], b?.[0]].sort()).toEqual(["first", "replayed"]);
      expect(a?.[1]).toBe(b?.[1]);
    }
    expect(await stockOf(db, hot)).toBe(900);
  });
});

/** It takes requests to be new until it meets one that is not. */
describe("a request id that was answered by another process comes to one that has looked for none, and", () => {
  let other: Database;
  let seenByOther: Seen;
  const call = () => callOf(randomUUID(), "a");

  beforeEach(async () => {
    ({ db: other, seen: seenByOther } = await open(url));
  });

  test("has its first answer, and its neighbours theirs", async () => {
    const again = call();
    expect(await send(again)).toBe("first [9]");
    const answers = await Promise.all([call(), again, call()].map((one) => send(one, takeOne([id]), other)));
    expect(answers).toEqual(["first [8]", "replayed [9]", "first [7]"]);
    expect(await stockOf(db, id)).toBe(7);
    // Nobody was faster, so nothing is locked on that account.
    expect(seenByOther.conflicted).toEqual([]);
    await send(call(), takeOne([id]), other);
    expect(seenByOther.committed.map(({ locked }) => locked)).toEqual([true, false]);
  });

  test("has its first answer when it would be refused by now", async () => {
    const [last = ""] = await addVariants(db, 1);
    const again = call();
    expect(await send(again, takeOne([last]))).toBe("first [0]");
    expect(await send(again, takeOne([last]), other)).toBe("replayed [0]");
    expect(await send(call(), takeOne([last]), other)).toBe("INSUFFICIENT_STOCK");
  });

  test("with other content is REQUEST_ID_REUSED", async () => {
    const used = call();
    await send(used);
    expect(await send(callOf(used.requestId, "b"), takeOne([id]), other)).toBe("REQUEST_ID_REUSED");
    expect(await stockOf(db, id)).toBe(9);
  });

  test("behind a batch that is being written has its first answer, too", async () => {
    const again = call();
    await send(again);
    const [x = ""] = await addVariants(db, STOCK);
    const held = await holdVariant(url, x);
    const first = send(call(), takeOne([x, id].sort()), other);
    await held.waiting(1);
    let decisions = 0;
    const counted = takeOne([id], () => {
      decisions += 1;
    });
    const second = send(again, counted, other);
    await vi.waitFor(() => expect(decisions).toBe(1));
    await held.release();
    expect(await Promise.all([first, second])).toEqual([expect.stringContaining("first"), "replayed [9]"]);
    expect(await stockOf(db, id)).toBe(8);
  });
});
