import { randomFillSync } from "node:crypto";
import { defineEntity, p } from "@mikro-orm/core";
import { v7 } from "uuid";

/** What can happen that others care about. */
export const eventTypes = [
  "order.placed",
  "order.paid",
  "order.cancelled",
  "order.expired",
  "order.returned",
  "payment.completed",
  "payment.failed",
  "payment.refunded",
  "balance.charged",
  "coupon.claimed",
  "stock.adjusted",
] as const;
export type EventType = (typeof eventTypes)[number];

/** Plain JSON; amounts as decimal strings, times as RFC 3339. */
export type Payload = { readonly [key: string]: string | number | boolean | null | Payload | readonly Payload[] };

/** As Postgres writes it down. */
const XID = "GREATEST(pg_current_xact_id(), (NULLIF(current_setting('doorbuster.after'::text, true), ''::text))::xid8)";

const schema = defineEntity({
  name: "Event",
  tableName: "event",
  properties: {
    id: p.uuid().primary(),
    aggregatetype: p.string().length(50),
    aggregateid: p.string().length(64),
    type: p.enum(eventTypes),
    payload: p.json<Payload>(),
    createTime: p.datetime(),
    /**
     * The transaction that wrote it. Events are read in the order of (xid, id), and only those of transactions older than
     * every running one: so none can appear behind a position that was read already. A transaction that has waited for locks
     * may be older than one that it has waited for: its events come behind those that were there when it had the locks.
     */
    xid: p.string().columnType("xid8").defaultRaw(XID).hydrate(false),
  },
  indexes: [
    { properties: ["xid", "id"] },
    {
      name: "event_ranked_index",
      properties: ["xid", "id"],
      where: "type in ('order.paid', 'order.cancelled', 'order.returned')",
    },
  ],
});

/** Of random bytes drawn at a time: 16 for each id cost more than the rest of an event. */
const RANDOM_POOL = 4_096;
const random = { bytes: new Uint8Array(RANDOM_POOL), used: RANDOM_POOL };
const last = { ms: 0, seq: 0 };

function rng(): Uint8Array {
  if (random.used === RANDOM_POOL) {
    randomFillSync(random.bytes);
    random.used = 0;
  }
  random.used += 16;
  return random.bytes.subarray(random.used - 16, random.used);
}

/** A UUIDv7 that is greater than the one before, also within a millisecond and when the clock goes back. */
function nextId(): string {
  const ms = Date.now();
  last.seq = ms > last.ms ? 0 : last.seq + 1;
  last.ms = Math.max(last.ms, ms);
  return v7({ msecs: last.ms, seq: last.seq, rng });
}

/**
 * Something that has happened, written in the transaction that made it happen. The column names are those of Debezium's
 * outbox event router, which can read the table as it is.
 */
export class Event extends schema.class {
  static of(type: EventType, aggregateId: string, payload: Payload, now: Date): Event {
    const aggregatetype = type.slice(0, type.indexOf("."));
    // Increasing, so that the events of a transaction keep their order.
    const id = nextId();
    return Object.assign(new Event(), { id, aggregatetype, aggregateid: aggregateId, type, payload, createTime: now });
  }
}
schema.setClass(Event);
