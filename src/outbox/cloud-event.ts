import type { StoredEvent } from "./feed.ts";

/** Where all events come from. Unique with an event's id. */
const SOURCE = "/doorbuster";

/**
 * An event in the JSON format of CloudEvents 1.0, on one line. Its id is the same whenever it is delivered, so that
 * receivers can drop repeats; `partitionkey` is the aggregate whose events keep their order.
 * https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/formats/json-format.md
 */
export function toCloudEvent(event: StoredEvent): string {
  const attributes = JSON.stringify({
    specversion: "1.0",
    id: event.id,
    source: SOURCE,
    type: event.type,
    subject: event.aggregateid,
    time: event.createTime.toISOString(),
    partitionkey: event.aggregateid,
    datacontenttype: "application/json",
  });
  // The payload is JSON already.
  return `${attributes.slice(0, -1)},"data":${event.payload}}`;
}
