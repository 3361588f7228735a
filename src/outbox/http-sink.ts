import { Agent, type Dispatcher } from "undici";
import { toCloudEvent } from "./cloud-event.ts";
import type { StoredEvent } from "./feed.ts";
import { inLanes } from "./lanes.ts";
import type { Failure, Sink } from "./sink.ts";

/** How many aggregates are delivered side by side. */
const WIDTH = 32;
/** Each with one request at a time: what is tried again must not keep those from one that come for the first time. */
const CONNECTIONS = 2 * WIDTH;
/** Of an answer's body nobody reads more, in bytes. */
const MAX_ANSWER = 64 * 1024;
const headers = { "content-type": "application/cloudevents+json; charset=utf-8" };

/**
 * Answers about the event: bad request, conflict, too large, unprocessable. All others are about the sink, its address or our
 * credentials (401, 403, 404, 405, 410 ...), and would be the same for any event.
 */
const REFUSED = new Set([400, 409, 413, 422]);

function failureOf(status: number): Failure | undefined {
  if (status >= 200 && status < 300) return undefined;
  return { kind: REFUSED.has(status) ? "refused" : "failed", message: `it answered ${status}` };
}

/**
 * Sends each event to a URL in a POST of its own, as a CloudEvent in structured mode. Any 2xx means that it has arrived;
 * redirects are not followed. `timeoutMs`: how long an answer may take, its body included.
 * https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/http-protocol-binding.md
 */
export function httpSink(url: URL, timeoutMs: number): Sink {
  const agent = new Agent({ connections: CONNECTIONS, connect: { timeout: timeoutMs } });
  const target = { origin: url.origin, path: `${url.pathname}${url.search}`, method: "POST" as const };
  // Credentials in the URL are for a header, and not for the log.
  const credentials = [url.username, url.password].map(decodeURIComponent).join(":");
  const authorization = url.username ? { authorization: `Basic ${Buffer.from(credentials).toString("base64")}` } : {};

  async function post(event: StoredEvent, stop: AbortSignal): Promise<Failure | undefined> {
    const late = new AbortController();
    const timer = setTimeout(() => late.abort(), timeoutMs);
    const signal = AbortSignal.any([stop, late.signal]);
    try {
      const request: Dispatcher.RequestOptions = {
        ...target,
        headers: { ...headers, ...authorization },
        body: toCloudEvent(event),
        signal,
      };
      const { statusCode, body } = await agent.request(request);
      await body.dump({ limit: MAX_ANSWER, signal });
      return failureOf(statusCode);
    } catch (error) {
      const message = signal.aborted ? "no answer in time" : (error as Error).message;
      return { kind: "unreachable", message };
    } finally {
      clearTimeout(timer);
    }
  }
  return {
    name: `${url.origin}${url.pathname}`,
    deliver: (events, signal) => inLanes(events, WIDTH, (event) => post(event, signal)),
    close: () => agent.destroy(),
  };
}
