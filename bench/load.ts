/**
 * The load generator, a process of its own: takes jobs as messages, calls, and answers with what it has measured.
 *
 * Closed loop: each caller sends its next request when it has its answer. Open loop (`rate`): requests start at fixed
 * times, whatever becomes of the earlier ones, and latencies count from the time at which they should have started: of all
 * calls that should have started in the time that is measured, those too that are answered later.
 */
import { randomBytes } from "node:crypto";
import { setTimeout as delay } from "node:timers/promises";
import { Code } from "@connectrpc/connect";
import { type Connection, open, RESET } from "./h2.ts";
import { type Cell, LATE, summarize, type Timing } from "./measure.ts";
import { type RpcName, type Template, templateOf } from "./requests.ts";
import { spread } from "./spread.ts";
import { Streams, type StreamsJob } from "./streams.ts";
import { headersOf } from "./tokens.ts";

export type LoadJob = {
  /** Of the servers that share the callers. */
  ports: readonly number[];
  rpc: RpcName;
  callers: number;
  /** Calls a second for an open loop. */
  rate?: number | undefined;
  users: number;
  /** How many different things are asked for. */
  items: number;
  timing: Timing;
  /** Tokens are made with it. */
  secret: string;
  /** The server sends back what it gets. */
  echo: boolean;
};

/** Sent when the measurement begins and when it ends, for others to measure the same time. */
export type LoadMark = { mark: "begin" | "end" };
/** `answered`: successful calls in all, warm-up included. */
export type LoadResult = { cell: Cell; answered: number } | { failed: string };
/** The answer to a `StreamsJob`. */
export type StreamsOpen = { open: number } | { failed: string };

/** Waiting calls in an open loop, above which arrivals are dropped. */
const MAX_IN_FLIGHT = 20_000;
/** One answer of so many is decoded and checked. */
const SAMPLE = 64;
/** How long to wait for the last answers, and between looks at what is due in an open loop, in milliseconds. */
const DRAIN_TIMEOUT = 30_000;
const TICK = 1;

class Load {
  readonly #job: LoadJob;
  readonly #template: Template;
  /** Of the first call, and of the one that follows it. */
  readonly #headers: readonly Buffer[];
  readonly #nextHeaders: readonly Buffer[];
  readonly #streams: Streams | undefined;
  readonly #connections: Connection[] = [];
  readonly #done = Promise.withResolvers<void>();
  /** By slot, a call under way: when it started, for whom, and for what. */
  readonly #started: Float64Array;
  readonly #user: Uint32Array;
  readonly #item: Uint32Array;
  readonly #turn: Uint32Array;
  /** Whether its first call is done. */
  readonly #followed: Uint8Array;
  readonly #free: number[] = [];
  #latencies = new Float64Array(1 << 16);
  #counted = 0;
  /** Good answers in the time that is measured, and when it begins and ends. */
  #good = 0;
  #from = Number.POSITIVE_INFINITY;
  #until = Number.POSITIVE_INFINITY;
  #requests = 0;
  #inFlight = 0;
  #answered = 0;
  #dropped = 0;
  #late = 0;
  #stopping = false;
  readonly #codes: Record<string, number> = {};

  constructor(job: LoadJob, template: Template, headers: Headers, streams: Streams | undefined) {
    this.#job = job;
    this.#template = template;
    [this.#headers, this.#nextHeaders] = headers;
    this.#streams = streams;
    const slots = job.rate === undefined ? job.callers : MAX_IN_FLIGHT;
    this.#started = new Float64Array(slots);
    this.#user = new Uint32Array(slots);
    this.#item = new Uint32Array(slots);
    this.#turn = new Uint32Array(slots);
    this.#followed = new Uint8Array(slots);
    if (job.rate !== undefined) this.#free = Array.from({ length: slots }, (_, slot) => slot);
    // It may fail when nobody is waiting for it.
    this.#done.promise.catch(() => {});
  }

  async run(mark: (mark: LoadMark) => void): Promise<LoadResult> {
    const { ports, callers, rate, timing } = this.#job;
    const answer = (tag: number, status: number, message: Buffer | undefined) => this.#onAnswer(tag, status, message);
    for (const port of spread(callers, ports)) this.#connections.push(await open(port, answer));
    const failure = Promise.race(this.#connections.map((connection) => connection.lost));
    const lost = rate === undefined ? failure : failure.catch(() => this.#onLost());
    try {
      if (rate === undefined) for (let slot = 0; slot < callers; slot += 1) this.#call(slot, performance.now());
      else this.#keepRate(rate);
      this.#flush();
      await Promise.race([delay(timing.warmup * 1_000), lost, this.#done.promise]);
      mark({ mark: "begin" });
      const cpu = process.cpuUsage();
      this.#from = performance.now();
      await Promise.race([delay(timing.seconds * 1_000), lost, this.#done.promise]);
      this.#until = performance.now();
      const seconds = (this.#until - this.#from) / 1_000;
      const { user, system } = process.cpuUsage(cpu);
      mark({ mark: "end" });
      this.#stopping = true;
      const late = delay(DRAIN_TIMEOUT, undefined, { ref: false });
      if (this.#inFlight > 0) await Promise.race([this.#done.promise, late, lost]);
      const cell = this.#cell(seconds, user + system);
      const lag = await this.#streams?.lag(this.#from, this.#until);
      return { cell: { ...cell, ...(lag && { lag }) }, answered: this.#answered };
    } finally {
      for (const connection of this.#connections) connection.close();
    }
  }

  #cell(seconds: number, cpu: number): Cell {
    const { callers, rate } = this.#job;
    if (this.#inFlight > 0) this.#codes.UNANSWERED = this.#inFlight;
    const errors = Object.values(this.#codes).reduce((sum, count) => sum + count, 0);
    return {
      callers,
      ...summarize(this.#latencies.subarray(0, this.#counted), seconds),
      perSecond: this.#good / seconds,
      errors,
      ...(errors > 0 && { codes: this.#codes }),
      clientCpu: cpu / Math.max(1, this.#good),
      ...(rate !== undefined && { rate, dropped: this.#dropped + this.#inFlight, late: this.#late }),
    };
  }

  #call(slot: number, start: number): void {
    const { users, items, callers, rate } = this.#job;
    // Each caller has users of its own, one after the other: no two calls under way are of the same user.
    const lane = rate === undefined ? Math.floor(users / callers) : users;
    const turn = rate === undefined ? (this.#turn[slot] as number) : this.#requests;
    const user = (rate === undefined ? slot * lane : 0) + (turn % lane);
    const item = items === 1 ? 0 : Math.floor(Math.random() * items);
    this.#turn[slot] = turn + 1;
    this.#started[slot] = start;
    this.#user[slot] = user;
    this.#item[slot] = item;
    this.#template.setRequest(this.#requests);
    this.#template.setUser(user);
    this.#template.setItem(item);
    this.#requests += 1;
    this.#inFlight += 1;
    this.#connectionOf(slot).call(slot, this.#headers[user] as Buffer, this.#template.message);
  }

  #connectionOf(slot: number): Connection {
    return this.#connections[slot % this.#connections.length] as Connection;
  }

  /** Makes the call that completes the work of the first one, if there is one to be made. */
  #follow(slot: number, message: Buffer | undefined): boolean {
    const { next } = this.#template;
    if (!next || !message) return false;
    this.#followed[slot] = 1 - (this.#followed[slot] as number);
    if (!this.#followed[slot]) return false;
    const user = this.#user[slot] as number;
    this.#answered += 1;
    this.#connectionOf(slot).call(slot, this.#nextHeaders[user] as Buffer, next.message(message, user));
    return true;
  }

  #flush(): void {
    for (const connection of this.#connections) connection.flush();
  }

  /** Starts what is due. A timer that comes late makes up for it, and what it starts late is measured as late. */
  #keepRate(rate: number): void {
    const began = performance.now();
    let sent = 0;
    const timer = setInterval(() => {
      if (this.#stopping) {
        clearInterval(timer);
        return;
      }
      const due = Math.floor(((performance.now() - began) * rate) / 1_000);
      for (; sent < due; sent += 1) {
        const slot = this.#free.pop();
        const start = began + (sent * 1_000) / rate;
        if (slot !== undefined) this.#call(slot, start);
        else if (this.#isMeasured(start)) this.#dropped += 1;
      }
      this.#flush();
    }, TICK);
  }

  #onAnswer(slot: number, status: number, message: Buffer | undefined): void {
    if (status === 0 && this.#follow(slot, message)) return;
    const now = performance.now();
    this.#inFlight -= 1;
    if (status === 0) this.#onSuccess(slot, now, message);
    else {
      this.#followed[slot] = 0;
      const name = status === RESET ? "RESET" : (Code[status] ?? `status ${status}`);
      this.#codes[name] = (this.#codes[name] ?? 0) + 1;
    }
    if (this.#job.rate !== undefined) this.#free.push(slot);
    else if (!this.#stopping) this.#call(slot, now);
    if (this.#stopping && this.#inFlight === 0) this.#done.resolve();
  }

  /** In an open loop that a server has broken off there is nothing more to measure, but much to tell. */
  #onLost(): void {
    this.#codes.CONNECTION_LOST = 1;
    this.#stopping = true;
  }

  #isMeasured(time: number): boolean {
    return time >= this.#from && time < this.#until;
  }

  #onSuccess(slot: number, now: number, message: Buffer | undefined): void {
    if (!message) this.#done.reject(new Error("an answer without a message"));
    else if (this.#answered % SAMPLE === 0) this.#check(slot, message);
    this.#answered += 1;
    this.#streams?.sold(now);
    const start = this.#started[slot] as number;
    const inTime = this.#isMeasured(now);
    if (inTime) this.#good += 1;
    if (this.#job.rate === undefined ? !inTime : !this.#isMeasured(start)) return;
    const latency = now - start;
    if (latency > LATE) this.#late += 1;
    if (this.#counted === this.#latencies.length) {
      const larger = new Float64Array(this.#counted * 2);
      larger.set(this.#latencies);
      this.#latencies = larger;
    }
    this.#latencies[this.#counted] = latency;
    this.#counted += 1;
  }

  #check(slot: number, message: Buffer): void {
    if (this.#job.echo) {
      if (message.length !== this.#template.message.length) this.#done.reject(new Error("not what was sent"));
      return;
    }
    const wrong = this.#template.check(message, this.#user[slot] as number, this.#item[slot] as number);
    if (wrong) this.#done.reject(new Error(`wrong answer: ${wrong}`));
  }
}

type Headers = readonly [first: readonly Buffer[], next: readonly Buffer[]];

let streams: Streams | undefined;

async function carryOut(job: LoadJob, mark: (mark: LoadMark) => void): Promise<LoadResult> {
  const template = templateOf(job.rpc, randomBytes(4).toString("hex"));
  const headers = (path: string | undefined) => (path ? headersOf(path, job.secret, job.users) : []);
  const both = [await headers(template.path), await headers(template.next?.path)] as const;
  return new Load(job, template, both, streams).run(mark);
}

async function openStreams(job: StreamsJob): Promise<StreamsOpen> {
  streams?.close();
  streams = job.streams > 0 ? await Streams.open(job) : undefined;
  return { open: job.streams };
}

process.on("message", (job: LoadJob | StreamsJob) => {
  const send = (message: LoadMark | LoadResult | StreamsOpen) => process.send?.(message);
  const result = "streams" in job ? openStreams(job) : carryOut(job, send);
  result.then(send, (error: unknown) => send({ failed: (error as Error).message }));
});
// Whoever started it has gone.
process.on("disconnect", () => process.exit());
