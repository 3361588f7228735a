import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromDate } from "@bufbuild/protobuf/wkt";
import type { ServiceImpl } from "@connectrpc/connect";
import type { EventSchema, EventService } from "../../gen/shop/v1/event_pb.ts";
import type { EventFeed, EventType, StoredEvent } from "./event.service.ts";

export function eventHandler(feed: EventFeed): ServiceImpl<typeof EventService> {
  return {
    async *streamEvents({ afterPosition, types }, { signal }) {
      for await (const { events, position } of feed.stream(afterPosition, types as EventType[], signal)) {
        yield { events: events.map(toEvent), position };
      }
    },
  };
}

function toEvent(event: StoredEvent): MessageInitShape<typeof EventSchema> {
  return {
    id: event.id,
    type: event.type,
    aggregateType: event.aggregatetype,
    aggregateId: event.aggregateid,
    createTime: timestampFromDate(event.createTime),
    payload: event.payload,
  };
}
