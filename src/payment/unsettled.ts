/** What waits for an answer of the gateway. */
import { MOST, type Waiting } from "../db/lag.ts";

/**
 * Payments that a gateway is to be asked about, or asked to give back, `timeoutMs` after they were begun or at once. Of the
 * tries, the last one may be under way.
 */
export function unsettledPayments(timeoutMs: number): Waiting {
  return {
    sql: `
      select update_time + case state when 'PENDING' then ? else 0 end * interval '1 ms' as due_time,
             greatest(tries - 1, 0) as failures
        from payment
       where state in ('PENDING', 'REFUNDING') and (tries > 0 or next_try_time <= now())
       order by next_try_time limit ${MOST}`,
    values: [timeoutMs],
  };
}
