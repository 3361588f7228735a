/**
 * Stripe's API as far as the service uses it, spoken over HTTP: intents and refunds in memory, idempotency keys and locks
 * that hold what Stripe's documentation says of them, and failures when a test wants them.
 */
import { once } from "node:events";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import { text } from "node:stream/consumers";
import { afterAll } from "vitest";
import { type Answer, type Params, Refusal, StripeBooks } from "./stripe-books.ts";

export const STRIPE_KEY = "sk_test_hunter2";

type Fault = { on: RegExp; at: Moment; act: () => Promise<void> };

/** When a request can be met: as it comes, while it is carried out and holds its lock, or when it is done. */
type Moment = "arrives" | "runs" | "answers";

class Cut extends Error {}

export class FakeStripe {
  readonly books = new StripeBooks();
  /** Each that came, as `POST /v1/refunds`. */
  readonly requests: string[] = [];
  readonly #server = createServer((request, response) => void this.#serve(request, response));
  readonly #keys = new Map<string, { request: string; answer?: Answer }>();
  readonly #locked = new Set<string>();
  #faults: Fault[] = [];

  async start(): Promise<void> {
    this.#server.listen(0, "127.0.0.1");
    await once(this.#server, "listening");
  }

  stop(): void {
    this.#server.close();
    this.#server.closeAllConnections();
  }

  get url(): string {
    return `http://127.0.0.1:${(this.#server.address() as { port: number }).port}`;
  }

  /** The next request that matches waits at that moment until it is released, be its sender there or not. */
  hold(on: RegExp, at: Moment): { reached: Promise<void>; release: () => void } {
    const reached = Promise.withResolvers<void>();
    const released = Promise.withResolvers<void>();
    const act = () => {
      reached.resolve();
      return released.promise;
    };
    this.#faults.push({ on, at, act });
    return { reached: reached.promise, release: () => released.resolve() };
  }

  /** The connection of the next request that matches breaks at that moment. */
  cut(on: RegExp, at: Moment): void {
    this.#faults.push({ on, at, act: () => Promise.reject(new Cut()) });
  }

  /** The next request that matches fails: 429 before its key is looked at, 500 for good. */
  fail(on: RegExp, status: 429 | 500): void {
    const failure = { type: status === 429 ? "rate_limit_error" : "api_error", message: "An error occurred." };
    const act = () => Promise.reject(new Refusal(status, failure));
    this.#faults.push({ on, at: status === 429 ? "arrives" : "runs", act });
  }

  /** As after a day. */
  forgetKeys(): void {
    this.#keys.clear();
  }

  async #meet(at: Moment, call: string): Promise<void> {
    const fault = this.#faults.find((candidate) => candidate.at === at && candidate.on.test(call));
    if (!fault) return;
    this.#faults = this.#faults.filter((other) => other !== fault);
    await fault.act();
  }

  async #serve(request: IncomingMessage, response: ServerResponse): Promise<void> {
    try {
      const form = await text(request);
      const { status, body, replayed } = await this.#answer(request, form);
      response.writeHead(status, {
        "content-type": "application/json",
        "request-id": `req_${this.requests.length}`,
        ...(replayed && { "idempotent-replayed": "true" }),
        ...(status === 500 && { "stripe-should-retry": "false" }),
      });
      response.end(JSON.stringify(body));
    } catch (error) {
      request.socket.destroy();
      if (!(error instanceof Cut) && !request.destroyed) throw error;
    }
  }

  async #answer(request: IncomingMessage, form: string): Promise<Answer> {
    const { pathname, searchParams } = new URL(request.url ?? "", this.url);
    const call = `${request.method} ${pathname}`;
    this.requests.push(call);
    try {
      if (request.headers.authorization !== `Bearer ${STRIPE_KEY}`) {
        throw new Refusal(401, { type: "invalid_request_error", message: "Invalid API Key provided: sk_test_****er2" });
      }
      await this.#meet("arrives", call);
      const params = Object.fromEntries(request.method === "GET" ? searchParams : new URLSearchParams(form));
      const key = request.headers["idempotency-key"];
      const run = () => this.#locking(pathname, call, params);
      const answer = typeof key === "string" ? await this.#once(key, `${call} ${form}`, run) : await run();
      await this.#meet("answers", call);
      return answer;
    } catch (error) {
      if (error instanceof Refusal) return error.answer;
      throw error;
    }
  }

  /** Carried out once a key, and answered the same from then on, be it a failure. */
  async #once(key: string, request: string, run: () => Promise<Answer>): Promise<Answer> {
    const known = this.#keys.get(key);
    if (known && known.request !== request) {
      const message =
        "Keys for idempotent requests can only be used with the same parameters they were first used with.";
      throw new Refusal(400, { type: "idempotency_error", message });
    }
    if (known?.answer) return { ...known.answer, replayed: true };
    if (known)
      throw new Refusal(409, { type: "idempotency_error", code: "idempotency_key_in_use", message: "In use." });
    const entry: { request: string; answer?: Answer } = { request };
    this.#keys.set(key, entry);
    const answer = await run();
    // Refused before it began.
    if (answer.status === 429) this.#keys.delete(key);
    // As it was then: what becomes of the object later does not show.
    else entry.answer = structuredClone(answer);
    return answer;
  }

  async #locking(path: string, call: string, params: Params): Promise<Answer> {
    const id = call.startsWith("POST") ? (/\/(pi_\d+)/.exec(path)?.[1] ?? params.payment_intent) : undefined;
    try {
      if (id !== undefined && this.#locked.has(id)) {
        const message = "This object cannot be accessed right now because another API request is accessing it.";
        throw new Refusal(429, { type: "invalid_request_error", code: "lock_timeout", message });
      }
      if (id !== undefined) this.#locked.add(id);
      try {
        await this.#meet("runs", call);
        return { status: 200, body: this.books.carryOut(call, params) };
      } finally {
        if (id !== undefined) this.#locked.delete(id);
      }
    } catch (error) {
      if (error instanceof Refusal) return error.answer;
      throw error;
    }
  }
}

/** Starts one that runs until the test file ends. */
export async function startStripe(): Promise<FakeStripe> {
  const stripe = new FakeStripe();
  await stripe.start();
  afterAll(() => stripe.stop());
  return stripe;
}
