/** Streams of the live top, and how long a sale takes to the last of them. */
import { setTimeout as delay } from "node:timers/promises";
import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { WatchTopProductsRequestSchema, WatchTopProductsResponseSchema } from "../gen/shop/v1/ranking_pb.ts";
import { type Connection, open } from "./h2.ts";
import { quantile } from "./measure.ts";
import { headersOf } from "./tokens.ts";

export type StreamsJob = {
  /** How many to have open from now on; none closes them. */
  streams: number;
  ports: readonly number[];
  users: number;
  secret: string;
};

/** Milliseconds from the answer to a payment to the last stream that shows it. */
export type Lag = { p50: number; p99: number };

const PATH = "/shop.v1.RankingService/WatchTopProducts";
const STREAMS_PER_CONNECTION = 100;
/** How long streams may take to open, and to show the last sale, in milliseconds. */
const TIMEOUT = 60_000;

export class Streams {
  readonly #connections: Connection[] = [];
  /** Units that each stream shows, none yet being -1, and how many streams show so many. */
  readonly #shown: Float64Array;
  readonly #levels = new Map<number, number>();
  /** Units that all streams show, and since when. */
  #least = -1;
  readonly #reached: { units: number; at: number }[] = [];
  /** When each unit was paid. */
  readonly #sales: number[] = [];
  #closing = false;
  #wake = () => {};
  #lost: Error | undefined;
  /** Most streams are sent the same bytes. */
  #last: Buffer = Buffer.alloc(0);
  #lastUnits = 0;

  private constructor(count: number) {
    this.#shown = new Float64Array(count).fill(this.#least);
    this.#levels.set(this.#least, count);
  }

  /** Opens streams, and waits for the first answer on each. @throws Error when one of them ends */
  static async open({ streams: count, ports, users, secret }: StreamsJob): Promise<Streams> {
    const streams = new Streams(count);
    const headers = await headersOf(PATH, secret, users);
    const request = Buffer.from(toBinary(WatchTopProductsRequestSchema, create(WatchTopProductsRequestSchema)));
    for (let first = 0; first < count; first += STREAMS_PER_CONNECTION) {
      const port = ports[streams.#connections.length % ports.length] as number;
      const connection = await open(
        port,
        (_, status) => streams.#onEnd(new Error(`a stream ended with status ${status}`)),
        (tag, message) => streams.#onMessage(tag, message),
      );
      connection.lost.catch((error: Error) => streams.#onEnd(error));
      streams.#connections.push(connection);
      for (let tag = first; tag < Math.min(count, first + STREAMS_PER_CONNECTION); tag += 1) {
        connection.call(tag, headers[tag % users] as Buffer, request);
      }
      connection.flush();
    }
    await streams.#until(() => streams.#least >= 0);
    return streams;
  }

  /** A unit has been paid. */
  sold(at: number): void {
    this.#sales.push(at);
  }

  /** What the sales in that time took to the last stream. @throws Error when a stream does not show them all */
  async lag(from: number, until: number): Promise<Lag> {
    await this.#until(() => this.#least >= this.#sales.length);
    const lags: number[] = [];
    let next = 0;
    for (const [index, paid] of this.#sales.entries()) {
      while ((this.#reached[next]?.units ?? Number.POSITIVE_INFINITY) <= index) next += 1;
      // A stream may be faster than the answer to the payment.
      if (paid >= from && paid < until) lags.push(Math.max(0, (this.#reached[next]?.at ?? Number.NaN) - paid));
    }
    const sorted = Float64Array.from(lags).sort();
    return { p50: quantile(sorted, 0.5), p99: quantile(sorted, 0.99) };
  }

  close(): void {
    this.#closing = true;
    for (const connection of this.#connections) connection.close();
  }

  #onEnd(error: Error): void {
    if (this.#closing) return;
    this.#lost ??= error;
    this.#wake();
  }

  #onMessage(tag: number, message: Buffer): void {
    if (!message.equals(this.#last)) {
      const { products, asOf } = fromBinary(WatchTopProductsResponseSchema, message);
      if (!asOf) {
        this.#onEnd(new Error("an answer without its time"));
        return;
      }
      this.#last = Buffer.from(message);
      this.#lastUnits = products.reduce((sum, { unitsSold }) => sum + Number(unitsSold), 0);
    }
    this.#show(tag, this.#lastUnits);
    this.#wake();
  }

  #show(tag: number, units: number): void {
    const before = this.#shown[tag] as number;
    if (units < before) {
      this.#onEnd(new Error(`a stream went back from ${before} to ${units} units`));
      return;
    }
    this.#shown[tag] = units;
    const left = (this.#levels.get(before) as number) - 1;
    if (left > 0) this.#levels.set(before, left);
    else this.#levels.delete(before);
    this.#levels.set(units, (this.#levels.get(units) ?? 0) + 1);
    if (left > 0 || before !== this.#least) return;
    this.#least = Math.min(...this.#levels.keys());
    this.#reached.push({ units: this.#least, at: performance.now() });
  }

  async #until(condition: () => boolean): Promise<void> {
    const late = delay(TIMEOUT, true, { ref: false });
    while (!condition()) {
      if (this.#lost) throw this.#lost;
      const { promise, resolve } = Promise.withResolvers<boolean>();
      this.#wake = () => resolve(false);
      if (await Promise.race([promise, late])) {
        throw new Error(`of ${this.#sales.length} sales the streams show ${this.#least} after ${TIMEOUT / 1_000} s`);
      }
    }
    if (this.#lost) throw this.#lost;
  }
}
