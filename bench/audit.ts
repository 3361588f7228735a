/** What is checked after each measurement: whatever was fast but wrong, fails the run. */
import { setTimeout as delay } from "node:timers/promises";
import type { Client } from "pg";
import { audit as checkInvariants } from "../src/audit/audit.ts";
import { RANKING, RANKING_BEHIND } from "../src/audit/invariants.ts";

/** How long the ranking may be behind the last order, and how often to look, in milliseconds. */
const RANKING_TIMEOUT = 60_000;
const RANKING_POLL = 50;
/** When nobody waits for answers any more, a service may still write: until nothing has come for so many milliseconds. */
const QUIET = 1_000;
const QUIET_LOOKS = 60;

/** Found by the audit: the numbers of this run mean nothing. */
export class BrokenInvariant extends Error {
  override readonly name = "BrokenInvariant";
}

export type Expected = {
  /** What was measured. */
  what: string;
  /** Writes that were answered, or committed. */
  done: number;
  /** How many more may be stored, because nobody waited for their answer. */
  unheard: number;
  /** Whether the service runs, and so counts the sales. */
  ranked: boolean;
};

async function count(admin: Client, query: string): Promise<number> {
  const { rows } = await admin.query<{ count: number }>(`select count(*)::int as count from (${query}) as found`);
  return rows[0]?.count ?? 0;
}

async function rankingCaughtUp(admin: Client): Promise<boolean> {
  const start = performance.now();
  while ((await count(admin, RANKING_BEHIND)) > 0) {
    if (performance.now() - start > RANKING_TIMEOUT) return false;
    await delay(RANKING_POLL);
  }
  return true;
}

const STORED = "select from idempotency";
/** What calls have brought about. */
const EFFECTS = `select from shop_order union all select from issued_coupon union all
                 select from payment_event where cause = 'PayOrder'`;

async function writingEnded(admin: Client): Promise<boolean> {
  let before = -1;
  for (let look = 0; look < QUIET_LOOKS; look += 1) {
    const stored = await count(admin, STORED);
    if (stored === before) return true;
    before = stored;
    await delay(QUIET);
  }
  return false;
}

/**
 * Checks that the invariants hold, and exactly what was answered is stored.
 *
 * @throws BrokenInvariant naming all that does not hold
 */
export async function audit(admin: Client, { what, done, unheard, ranked }: Expected): Promise<void> {
  const broken: string[] = [];
  if (ranked && unheard > 0 && !(await writingEnded(admin))) broken.push("the service does not stop writing");
  if (ranked && !(await rankingCaughtUp(admin)))
    broken.push(`the ranking is behind after ${RANKING_TIMEOUT / 1_000} s`);
  for (const verdict of (await checkInvariants(admin)).verdicts) {
    // Where the service does not run, all events pass for counted.
    if (verdict.name === RANKING && !ranked) continue;
    if (verdict.verdict !== "holds") broken.push(`${verdict.broken} rows break "${verdict.name}"`);
  }
  const stored = await count(admin, STORED);
  const effects = await count(admin, EFFECTS);
  if (stored !== effects) broken.push(`${stored} responses are stored for ${effects} effects`);
  if (stored < done || stored > done + unheard) broken.push(`${done} writes were answered, ${stored} are stored`);
  if (broken.length > 0) throw new BrokenInvariant(`the audit after ${what} failed: ${broken.join("; ")}`);
}
