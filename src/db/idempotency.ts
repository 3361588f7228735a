import type { EntityManager } from "@mikro-orm/postgresql";
import { DomainError } from "../error.ts";
import { Replayed, type Write } from "./command.ts";
import { Answer } from "./idempotency.entity.ts";

/**
 * Returns when the request is new.
 *
 * @throws Replayed with the stored response when it was answered before
 * @throws DomainError REQUEST_ID_REUSED when its id was used for another request
 */
export async function answeredBefore(em: EntityManager, write: Write): Promise<void> {
  const { scope, rpc, requestId } = write;
  const answer = await em.findOne(Answer, { scope, rpc, requestId });
  if (!answer) return;
  if (Buffer.compare(answer.fingerprint, write.fingerprint) !== 0) {
    throw new DomainError("REQUEST_ID_REUSED", "the request id was used for another request", {
      request_id: requestId,
    });
  }
  throw new Replayed(answer.response);
}

/** The row that makes the request known, to be written with its effects. */
export function answerOf(write: Write, result: unknown, now: Date): Answer {
  const { scope, rpc, requestId } = write;
  const fingerprint = Buffer.from(write.fingerprint);
  const response = Buffer.from(write.encode(result));
  return Object.assign(new Answer(), { scope, rpc, requestId, fingerprint, response, createTime: now });
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
