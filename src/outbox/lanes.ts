import type { StoredEvent } from "./feed.ts";
import { type Deliveries, type Delivery, type Failure, isFailure, laneOf } from "./sink.ts";

/**
 * Delivers events one by one: those of one aggregate one after the other, up to a failure, and up to `width` aggregates
 * side by side. Gives up, as `down`, when that many in a row have reached nobody.
 */
export async function inLanes(
  events: readonly StoredEvent[],
  width: number,
  deliver: (event: StoredEvent) => Promise<Failure | undefined>,
): Promise<Deliveries> {
  const ends = new Map<StoredEvent, Delivery>();
  const lanes = Map.groupBy(events, laneOf).values();
  let unreached = 0;
  const work = async () => {
    // One iterator for all: each takes the next lane when it is done with its own.
    for (const lane of lanes) {
      for (const event of lane) {
        if (unreached >= width) return;
        const end = (await deliver(event)) ?? "delivered";
        ends.set(event, end);
        unreached = isFailure(end) && end.kind === "unreachable" ? unreached + 1 : 0;
        if (isFailure(end)) break;
      }
    }
  };
  await Promise.all(Array.from({ length: width }, work));
  const each = events.map((event) => ends.get(event) ?? "held");
  const taken = each.some((end) => end === "delivered" || (isFailure(end) && end.kind === "refused"));
  return { each, down: events.length > 0 && (unreached >= width || !taken) };
}
