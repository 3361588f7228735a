import { defineEntity, p } from "@mikro-orm/core";

const readerSchema = defineEntity({
  name: "EventReader",
  tableName: "event_reader",
  properties: {
    name: p.string().length(50).primary(),
    /** The process that reads for it, where only one may, until its lease ends by the clock of the database. */
    owner: p.uuid().nullable(),
    leaseEnd: p.datetime().nullable(),
    /** The last event that it has taken care of. */
    xid: p.string().columnType("xid8"),
    eventId: p.uuid(),
  },
});

/** Who reads all events, and how far that has come. */
export class EventReader extends readerSchema.class {}
readerSchema.setClass(EventReader);

const undeliveredSchema = defineEntity({
  name: "UndeliveredEvent",
  tableName: "event_undelivered",
  properties: {
    aggregateid: p.string().length(64).primary(),
    eventId: p.uuid().primary(),
    aggregatetype: p.string().length(50),
    xid: p.string().columnType("xid8"),
    attempts: p.integer(),
    /** Not tried again before, and not while it stands behind another one. */
    retryTime: p.datetime(),
    /** Given up: it is not tried again by itself, and holds up nobody. */
    dead: p.boolean(),
    lastError: p.string().length(500),
  },
  indexes: [
    { properties: ["aggregateid", "aggregatetype", "xid", "eventId"] },
    { name: "event_undelivered_due_index", properties: ["retryTime"], where: "not dead" },
  ],
});

/** An event that was set aside: it could not be delivered, or stands behind such a one of its aggregate. */
export class UndeliveredEvent extends undeliveredSchema.class {}
undeliveredSchema.setClass(UndeliveredEvent);
