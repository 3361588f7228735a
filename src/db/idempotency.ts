import type { EntityManager } from "@mikro-orm/postgresql";
import { DomainError } from "../error.ts";
import { Replayed, type Touch, type Tx, touch, type Write } from "./command.ts";
import { Answer } from "./idempotency.entity.ts";
import { MOST, type Waiting } from "./lag.ts";

const keyOf = ({ scope, rpc, requestId }: Write) => ({ scope, rpc, requestId });

/** The earlier answer of a request, to be loaded with the rows that it touches. */
export function answerTouch(write: Write): Touch {
  return touch(Answer, keyOf(write));
}

/**
 * Returns when the request is new.
 *
 * @throws Replayed with the stored response when it was answered before
 * @throws DomainError REQUEST_ID_REUSED when its id was used for another request
 */
export function answerBefore(tx: Tx, write: Write): void {
  const answer = tx.find(Answer, keyOf(write));
  if (!answer) return;
  if (Buffer.compare(answer.fingerprint, write.fingerprint) !== 0) {
    throw new DomainError("REQUEST_ID_REUSED", "the request id was used for another request", {
      request_id: write.requestId,
    });
  }
  throw new Replayed(answer.response);
}

/** The row that makes the request known, to be written with its effects. */
export function answerOf(write: Write, result: unknown, now: Date): Answer {
  const fingerprint = Buffer.from(write.fingerprint);
  const response = Buffer.from(write.encode(result));
  return Object.assign(new Answer(), { ...keyOf(write), fingerprint, response, createTime: now });
}

/** Deletes up to `limit` answers older than `before`, and returns how many. */
export async function purgeAnswers(em: EntityManager, before: Date, limit: number): Promise<number> {
  // SKIP LOCKED: replicas purge side by side without waiting for each other.
  const deleted = await em.execute(
    `delete from idempotency where (scope, rpc, request_id) in (
       select scope, rpc, request_id from idempotency where create_time < ? order by create_time limit ?
       for update skip locked) returning request_id`,
    [before, limit],
  );
  return deleted.length;
}

/** Answers that have been kept for longer than `ttlMs`. */
export function oldAnswers(ttlMs: number): Waiting {
  return {
    sql: `select create_time + ? * interval '1 ms' as due_time, 0 as failures from idempotency
           where create_time < now() - ? * interval '1 ms' order by create_time limit ${MOST}`,
    values: [ttlMs, ttlMs],
  };
}
