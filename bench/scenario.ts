/** What is measured, and what it has to reach. */
import { PRODUCTS } from "./data.ts";
import type { Cell } from "./measure.ts";
import type { RpcName } from "./requests.ts";
import { type Baseline, checkout, claim, place } from "./sql.ts";

/**
 * The service, and whom it is compared with. Three of those are the service again: `one` process of it where a scenario has
 * several, in a `closed` loop where a scenario overloads it, and `unwatched` where it has streams open.
 */
export type SideName = "service" | "stepwise" | "oneShot" | "echo" | "one" | "closed" | "unwatched";
export type Sides = Partial<Record<SideName, readonly Cell[]>>;

/**
 * A ratio that has to be reached: the service against another. `hot`: at the most connections, where everybody waits for
 * the same row. `best`: at the number of connections that suits the other best. `alone`: p50 of one caller, where less is
 * better. `overload`: like `hot`, but what must be is that every call is answered, and that none is refused otherwise than
 * for the overload.
 */
export type Bar = {
  against: Exclude<SideName, "service">;
  at: "hot" | "best" | "alone" | "overload";
  must?: number;
  aim: number;
};

export type Scenario = {
  name: string;
  rpc: RpcName;
  /** How many different things are asked for. */
  items: number;
  baseline?: Baseline;
  /** One caller, one connection. */
  alone?: boolean;
  /** So many processes of the service share the callers. */
  servers?: number;
  /** An open loop with so many calls a second, far more than can be answered, after a closed one. */
  overload?: number;
  /** So many streams of the live top are open, while so many purchases a second are made in an open loop. */
  watch?: Readonly<{ streams: readonly number[]; rate: number }>;
  /** The first is the one that counts. */
  bars: readonly [Bar, ...Bar[]];
};

/** As many as the live top shows, so that what it shows are all sales. */
const BEST_SELLERS = 5;

const hot: Scenario["bars"] = [
  { against: "stepwise", at: "hot", must: 5, aim: 10 },
  { against: "oneShot", at: "hot", aim: 3 },
];
const uniform: Scenario["bars"] = [
  { against: "stepwise", at: "best", must: 1.2, aim: 1.2 },
  { against: "oneShot", at: "best", aim: 0.8 },
];

export const scenarios: readonly Scenario[] = [
  { name: "place-hot", rpc: "place", items: 1, baseline: place, bars: hot },
  {
    name: "place-hot-two",
    rpc: "place",
    items: 1,
    servers: 2,
    bars: [{ against: "one", at: "hot", must: 0.8, aim: 1 }],
  },
  { name: "place-uniform", rpc: "place", items: PRODUCTS, baseline: place, bars: uniform },
  { name: "checkout-hot", rpc: "checkout", items: 1, baseline: checkout, bars: [hot[0]] },
  { name: "checkout-uniform", rpc: "checkout", items: PRODUCTS, baseline: checkout, bars: uniform },
  { name: "claim-hot", rpc: "claim", items: 1, baseline: claim, bars: [hot[0]] },
  { name: "get-product", rpc: "product", items: PRODUCTS, bars: [{ against: "echo", at: "hot", must: 0.5, aim: 0.8 }] },
  {
    name: "place-alone",
    rpc: "place",
    items: PRODUCTS,
    baseline: place,
    alone: true,
    bars: [{ against: "stepwise", at: "alone", must: 2.5, aim: 1.5 }],
  },
  {
    name: "overload",
    rpc: "place",
    items: 1,
    overload: 20_000,
    bars: [{ against: "closed", at: "overload", aim: 0.5 }],
  },
  {
    name: "watch",
    rpc: "buy",
    items: BEST_SELLERS,
    watch: { streams: [1_000, 10_000], rate: 500 },
    bars: [{ against: "unwatched", at: "hot", must: 0.9, aim: 0.95 }],
  },
];

const sideNames: Readonly<Record<SideName, string>> = {
  service: "service",
  stepwise: "stepwise SQL",
  oneShot: "one-shot SQL",
  echo: "bare grpc-js echo",
  one: "one process",
  closed: "closed loop",
  unwatched: "without streams",
};

/** What a side of a scenario is called in what people read. */
export function nameOf(side: SideName, { servers, overload }: Scenario): string {
  if (side === "service" && servers !== undefined) return `${servers} processes`;
  return side === "service" && overload !== undefined ? "overloaded" : sideNames[side];
}

/** The code of calls that were refused because too many wait. */
const OVERLOADED = "ResourceExhausted";

/** How far the service got by a bar. `reached` is undefined when there is nothing that must be reached. */
export type Verdict = Bar & { ratio: number; reached: boolean | undefined; aimed: boolean };

/** The measurement with the most callers, of those rather one in a closed loop. */
export const most = (cells: readonly Cell[]) =>
  cells.toSorted((a, b) => b.callers - a.callers || Number(a.rate !== undefined) - Number(b.rate !== undefined))[0];
const best = (cells: readonly Cell[]) => cells.toSorted((a, b) => b.perSecond - a.perSecond)[0];
const single = (cells: readonly Cell[]) => cells.find(({ callers }) => callers === 1);

/** The measurements that a bar compares; undefined when one of them was not made. */
export function compared(bar: Bar, sides: Sides): { service: Cell; other: Cell } | undefined {
  const others = sides[bar.against] ?? [];
  const service = bar.at === "alone" ? single(sides.service ?? []) : most(sides.service ?? []);
  const other = { hot: most, best, alone: single, overload: most }[bar.at](others);
  return service && other ? { service, other } : undefined;
}

/** Compares; undefined when a measurement is missing, or was made at a fixed rate and so says nothing about the most. */
export function judge(bar: Bar, sides: Sides): Verdict | undefined {
  const cells = compared(bar, sides);
  const overload = bar.at === "overload";
  if (!cells || (cells.service.rate !== undefined && !overload)) return undefined;
  const { service, other } = cells;
  const less = bar.at === "alone";
  const ratio = less ? service.p50 / other.p50 : service.perSecond / other.perSecond;
  const holds = (wanted: number) => (less ? ratio <= wanted : ratio >= wanted);
  const verdict = { ...bar, ratio, aimed: holds(bar.aim) };
  if (overload) return { ...verdict, reached: Object.keys(service.codes ?? {}).every((code) => code === OVERLOADED) };
  return { ...verdict, reached: bar.must === undefined ? undefined : holds(bar.must) };
}
