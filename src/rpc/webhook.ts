import { type IncomingHttpHeaders, type IncomingMessage, type ServerResponse, STATUS_CODES } from "node:http";
import type { Logger } from "pino";
import { type Arrival, logLine } from "./call.ts";
import { MAX_REQUEST_BYTES } from "./door.ts";

/**
 * Takes what another service POSTs to a path that is no RPC, the body as it came, and answers the HTTP status. It decides
 * by itself whom it trusts. What it throws is answered with 503, so that it is sent again.
 */
export type Webhook = (body: Buffer, headers: IncomingHttpHeaders) => Promise<number>;

/** Webhooks by their paths. */
export type Webhooks = ReadonlyMap<string, Webhook>;

type Exchange = Readonly<{ request: IncomingMessage; response: ServerResponse; arrival: Arrival; log: Logger }>;

/** Serves a request to a webhook, with one log line. */
export async function serveWebhook(webhook: Webhook, exchange: Exchange): Promise<void> {
  const { request, response, arrival, log } = exchange;
  let status = 503;
  try {
    status = await answer(webhook, request);
  } catch (err) {
    // Who has gone before the end of the body gets no answer.
    if (request.destroyed && !request.complete) return;
    log.error({ ...logLine(arrival, String(status)), err }, "a webhook failed");
  }
  log.info(logLine(arrival, String(status)), "webhook");
  if (status === 405) response.setHeader("allow", "POST");
  response.writeHead(status, { "content-type": "text/plain" }).end(`${STATUS_CODES[status]}\n`);
}

/** The most bodies that are read at a time: whoever sends them is known only when they are there. */
const MAX_READING = 32;
let reading = 0;

async function answer(webhook: Webhook, request: IncomingMessage): Promise<number> {
  if (request.method !== "POST") return 405;
  if (reading === MAX_READING) return 503;
  reading += 1;
  const body = await read(request).finally(() => {
    reading -= 1;
  });
  return body ? webhook(body, request.headers) : 413;
}

/** The body; undefined when it is too large. */
async function read(request: IncomingMessage): Promise<Buffer | undefined> {
  const chunks: Buffer[] = [];
  let size = 0;
  for await (const chunk of request) {
    size += chunk.length;
    if (size > MAX_REQUEST_BYTES) return undefined;
    chunks.push(chunk);
  }
  return Buffer.concat(chunks);
}
