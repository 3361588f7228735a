import type { StoredEvent } from "./feed.ts";
import { type Delivery, type Failure, isFailure, laneOf } from "./sink.ts";

/**
 * Delivers events one by one: those of one aggregate one after the other, up to a failure, and up to `width` aggregates
 * side by side. Tries no further ones when that many in a row were neither taken nor refused.
 */
export async function inLanes(
  events: readonly StoredEvent[],
  width: number,
  deliver: (event: StoredEvent) => Promise<Failure | undefined>,
): Promise<readonly Delivery[]> {
  const ends = new Map<StoredEvent, Delivery>();
  const lanes = Map.groupBy(events, laneOf).values();
  let inRow = 0;
  const work = async () => {
    // One iterator for all: each takes the next lane when it is done with its own.
    for (const lane of lanes) {
      for (const [index, event] of lane.entries()) {
        if (inRow >= width) {
          for (const left of lane.slice(index)) ends.set(left, "untried");
          break;
        }
        const end = (await deliver(event)) ?? "delivered";
        ends.set(event, end);
        inRow = isFailure(end) && end.kind !== "refused" ? inRow + 1 : 0;
        if (isFailure(end)) break;
      }
    }
  };
  await Promise.all(Array.from({ length: width }, work));
  return events.map((event) => ends.get(event) ?? "held");
}

/** The first event of up to `count` aggregates, of as many types as there are. `events`: in their order. */
export function firstOfLanes(events: readonly StoredEvent[], count: number): readonly StoredEvent[] {
  const firsts = [...Map.groupBy(events, laneOf).values()].map(([first]) => first as StoredEvent);
  const types = [...Map.groupBy(firsts, ({ type }) => type).values()];
  const longest = Math.max(0, ...types.map(({ length }) => length));
  const mixed = Array.from({ length: longest }, (_, index) => types.flatMap((ofType) => ofType[index] ?? []));
  return mixed.flat().slice(0, count);
}
