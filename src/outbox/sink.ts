import type { StoredEvent } from "./feed.ts";

/**
 * Why an event was not delivered. `refused`: somebody was there and did not want this very event; `failed`: somebody was
 * there and could not take it, or takes nothing from us; `unreachable`: nobody answered.
 */
export type Failure = Readonly<{
  kind: "refused" | "failed" | "unreachable" /** For the operator. */;
  message: string;
}>;

/**
 * What became of an event: delivered; failed; held, since one in front of it in its aggregate failed; or not tried, since
 * the sink took nothing any more.
 */
export type Delivery = "delivered" | "held" | "untried" | Failure;

/** Where events go. */
export interface Sink {
  /** For people. */
  readonly name: string;
  /**
   * Delivers events, those of one aggregate one after the other, and answers what became of each, in the same order.
   * Events that come behind a failed one of their aggregate are held. May be called again while it is at it, for other
   * aggregates. Does not throw.
   */
  deliver(events: readonly StoredEvent[], signal: AbortSignal): Promise<readonly Delivery[]>;
  close(): Promise<void>;
}

export const isFailure = (delivery: Delivery): delivery is Failure => typeof delivery === "object";

/** The aggregate whose events keep their order. */
export const laneOf = ({ aggregatetype, aggregateid }: StoredEvent): string => `${aggregatetype} ${aggregateid}`;
