/** What must hold of events: what has happened was announced once, and what was announced has happened. */
import { PURGED, START } from "../outbox/feed.ts";
import type { Invariant } from "./invariant.ts";

/**
 * From when on all events are there. The last one that was deleted, in the order of transactions, is not quite the youngest:
 * clocks of processes differ, and transactions take their time. An hour is more than either.
 */
const SINCE = `(
  select case when event_id = '${START.id}' then '-infinity'
              else to_timestamp(('x' || left(replace(event_id::text, '-', ''), 12))::bit(48)::bigint / 1000.0)
                   + interval '1 hour' end
    from event_reader where name = '${PURGED}')`;

/** Whether so many announcements are wrong, of something that has happened at a time, or has not. */
const miscounted = (count: string, happened: string, time: string) => `
  coalesce(${count}, 0) not between case when ${happened} and ${time} >= ${SINCE} then 1 else 0 end and (${happened})::int`;

/** Of a change of a payment: money has gone back, or all that was to. */
const GIVEN_BACK = "(amount < 0 or state = 'REFUNDED')";

/** `newest`: when the last thing happened that is to be announced. */
const scope = (newest: string) => `
  select case when since is null then 'how far events were deleted is not known'
              when newest < since then 'all of it happened before ' || since || ', and events of then are deleted'
         end as skipped,
         case when since > '-infinity' then 'events that are missing are noticed from ' || since || ' on' end as note
    from (select ${SINCE} as since, ${newest} as newest) as times`;

export const announcements: Readonly<Record<string, Invariant>> = {
  "each order was announced once, and so was what became of it": {
    broken: `
      select coalesce(o.id::text, e.aggregateid) as id
        from shop_order o full join (
            select aggregateid, count(*) filter (where type = 'order.placed') as placed,
                   count(*) filter (where type = 'order.paid') as paid,
                   count(*) filter (where type = 'order.cancelled') as cancelled,
                   count(*) filter (where type = 'order.expired') as expired
              from event where aggregatetype = 'order' group by aggregateid
          ) e on e.aggregateid = o.id::text
       where o.id is null
          or ${miscounted("e.placed", "true", "o.create_time")}
          or ${miscounted("e.paid", "o.pay_time is not null", "o.pay_time")}
          or ${miscounted("e.cancelled", "o.state = 'CANCELLED'", "o.update_time")}
          or ${miscounted("e.expired", "o.state = 'EXPIRED'", "o.update_time")}`,
    scope: scope("(select max(update_time) from shop_order)"),
  },

  "each payment that came through or failed was announced once, and so was each refund": {
    broken: `
      select coalesce(p.id::text, e.aggregateid) as id
        from (
            select payment_id as id, min(create_time) filter (where state = 'COMPLETED') as completed,
                   min(create_time) filter (where state = 'FAILED') as failed,
                   array_agg(create_time) filter (where ${GIVEN_BACK}) as refunds
              from payment_event group by payment_id
          ) p full join (
            select aggregateid, count(*) filter (where type = 'payment.completed') as completed,
                   count(*) filter (where type = 'payment.failed') as failed,
                   count(*) filter (where type = 'payment.refunded') as refunds
              from event where aggregatetype = 'payment' group by aggregateid
          ) e on e.aggregateid = p.id::text
       where p.id is null
          or ${miscounted("e.completed", "p.completed is not null", "p.completed")}
          or ${miscounted("e.failed", "p.failed is not null", "p.failed")}
          or coalesce(e.refunds, 0) not between (select count(*) from unnest(p.refunds) as r (time) where r.time >= ${SINCE})
                                            and coalesce(cardinality(p.refunds), 0)`,
    scope: scope("(select max(create_time) from payment_event)"),
  },

  "each issued piece was announced once": {
    broken: `
      select coalesce(i.id::text, e.id) as id
        from issued_coupon i full join (
            select aggregateid as coupon_id, payload ->> 'issued_coupon_id' as id, count(*) as claimed
              from event where type = 'coupon.claimed' group by 1, 2
          ) e on e.id = i.id::text and e.coupon_id = i.coupon_id::text
       where i.id is null or ${miscounted("e.claimed", "true", "i.issue_time")}`,
    scope: scope("(select max(issue_time) from issued_coupon)"),
  },
};
