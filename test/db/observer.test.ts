/** An observer that fails is no reason to write anything again. */
import { expect, onTestFinished, test } from "vitest";
import { entities } from "../../src/app.ts";
import { createOrm, poolOf } from "../../src/db/orm.ts";
import { BatchRunner } from "../../src/db/runner.ts";
import { Table } from "../../src/db/table.ts";
import { createDatabase } from "../support/database.ts";
import { addVariants, open, stockOf, takeOne } from "./harness.ts";

const url = await createDatabase();

test("what is committed is committed once, and answered, when the observer throws", async () => {
  const { db } = await open(url);
  const [id = ""] = await addVariants(db, 10);
  const orm = await createOrm({ url, poolSize: 1, entities });
  onTestFinished(() => orm.close());
  const failure = new Error("no space for metrics");
  const runner = new BatchRunner({
    pool: await poolOf(orm),
    tables: (entity) => new Table(orm.getMetadata().get(entity)),
    clock: () => new Date(),
    isolation: "repeatable read",
    lockTimeoutMs: 250,
    carefulMs: 1_000,
    observer: {
      committed() {
        throw failure;
      },
    },
  });
  const command = takeOne([id]);
  const answers: unknown[] = [];
  const pending = {
    command,
    write: undefined,
    answer: undefined,
    touches: command.touches as [],
    resolve: (result: unknown) => void answers.push(result),
    reject: (error: unknown) => void answers.push(error),
    replan: () => void answers.push("replan"),
  };
  await expect(runner.run([pending, pending])).rejects.toBe(failure);
  expect(answers).toEqual([[9], [8]]);
  expect(await stockOf(db, id)).toBe(8);
});
