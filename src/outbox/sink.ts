import type { StoredEvent } from "./feed.ts";

/**
 * Why an event was not delivered. `refused`: somebody was there and did not want this very event; `failed`: somebody was
 * there and could not take it; `unreachable`: nobody answered.
 */
export type Failure = Readonly<{
  kind: "refused" | "failed" | "unreachable" /** For the operator. */;
  message: string;
}>;

/** What became of an event: delivered, failed, or not tried since one in front of it in its aggregate failed. */
export type Delivery = "delivered" | "held" | Failure;

/** `down`: it looks as if nothing could be delivered now, so that what failed says nothing about the events. */
export type Deliveries = Readonly<{ each: readonly Delivery[]; down: boolean }>;

/** Where events go. */
export interface Sink {
  /** For people. */
  readonly name: string;
  /**
   * Delivers events, those of one aggregate one after the other, and answers what became of each, in the same order.
   * Events that come behind a failed one of their aggregate are held. Does not throw.
   */
  deliver(events: readonly StoredEvent[], signal: AbortSignal): Promise<Deliveries>;
  close(): Promise<void>;
}

export const isFailure = (delivery: Delivery): delivery is Failure => typeof delivery === "object";

/** The aggregate whose events keep their order. */
export const laneOf = ({ aggregatetype, aggregateid }: StoredEvent): string => `${aggregatetype} ${aggregateid}`;
