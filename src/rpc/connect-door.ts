import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import { type DescMethod, type Message, toBinary } from "@bufbuild/protobuf";
import { Code, ConnectError, type ConnectRouter, cors, type HandlerContext } from "@connectrpc/connect";
import { errorToJson } from "@connectrpc/connect/protocol-connect";
import { setTrailerStatus } from "@connectrpc/connect/protocol-grpc";
import { connectNodeAdapter } from "@connectrpc/connect-node";
import type { Logger } from "pino";
import { DomainError } from "../error.ts";
import { type Arrival, type Call, callKey, type Rpc, requestIdOf } from "./call.ts";
import { DEFAULT_DEADLINE_MS, type Door, gone, KEEPALIVE_MS, listen, MAX_REQUEST_BYTES, within } from "./door.ts";
import { isMapped } from "./error-map.ts";
import { encodeStreamed } from "./handler.ts";
import type { Pipeline } from "./pipeline.ts";
import { serveWebhook, type Webhooks } from "./webhook.ts";

export type ConnectDoorOptions = Readonly<{
  host: string;
  port: number;
  /** Origins whose pages may call; "*" lets all. */
  corsOrigins: readonly string[];
  webhooks: Webhooks;
  /** Whether the server can do its work: asked by GET /readyz. */
  ready: () => Promise<boolean>;
  log: Logger;
}>;

type Mutable<T> = { -readonly [P in keyof T]: T[P] };

/** What a failure of the transport library means: before the handler ran it is about what the caller sent. */
function blame(call: Call, error: ConnectError): unknown {
  if (call.started || error.code !== Code.Internal) return error;
  return new DomainError("ARGUMENT_INVALID", error.rawMessage);
}

/**
 * Runs when the library gives up a call by itself (broken JSON, too large, past the deadline, caller gone). It has no
 * hook for changing its errors, but it aborts the context with the error before it sends it.
 */
function onAbort(call: Call, { signal, timeoutMs }: HandlerContext): void {
  const { reason } = signal;
  if (!(reason instanceof ConnectError) || reason.code === Code.Aborted) {
    call.abandon(gone(timeoutMs()));
  } else if (!isMapped(reason)) {
    const meant = blame(call, reason);
    call.abandon(meant);
    const { code, rawMessage, details } = call.refuse(meant);
    Object.assign(reason as Mutable<ConnectError>, { code, rawMessage, details });
  }
}

/** Begins a call when its headers are there, before its body is read. */
async function admit(pipeline: Pipeline, rpc: Rpc, context: HandlerContext): Promise<void> {
  const call = pipeline.begin(rpc, context.requestHeader.get("x-request-id"));
  context.values.set(callKey, call);
  context.responseHeader.set("x-request-id", call.requestId);
  context.signal.addEventListener("abort", () => onAbort(call, context), { once: true });
  try {
    context.signal.throwIfAborted();
    await call.authorize(context.requestHeader.get("authorization") ?? undefined);
  } catch (error) {
    throw call.refuse(error);
  }
}

function callOf(context: HandlerContext): Call {
  const call = context.values.get(callKey);
  if (!call) throw new Error("a call came past the gate");
  return call;
}

/**
 * Where answers are sent in envelopes, the library puts what it finds wrong with a message into the answer and tells
 * nobody before: the one failure of ours that could leave the house unmapped.
 */
function assertEncodable(call: Call, message: Message, encode: typeof encodeStreamed = toBinary): void {
  try {
    encode(call.rpc.method.output, message);
  } catch (error) {
    throw call.refuse(error);
  }
}

async function serveUnary(request: Message, context: HandlerContext): Promise<Message> {
  const call = callOf(context);
  try {
    const message = await call.run(request, context);
    if (context.protocolName !== "connect") assertEncodable(call, message);
    call.complete();
    return message;
  } catch (error) {
    throw call.refuse(error);
  }
}

async function* serveStream(request: Message, context: HandlerContext): AsyncGenerator<Message, void> {
  const call = callOf(context);
  for await (const message of call.stream(request, context)) {
    assertEncodable(call, message, encodeStreamed);
    yield message;
  }
}

function addRpcs(router: ConnectRouter, rpcs: readonly Rpc[]): void {
  for (const { method } of rpcs) {
    if (method.methodKind === "unary") router.rpc(method, serveUnary);
    else router.rpc(method, serveStream);
  }
}

function sendText(response: ServerResponse, status: number, text: string): void {
  response.writeHead(status, { "content-type": "text/plain" }).end(`${text}\n`);
}

/** Answers a path that is no RPC in the words of the caller's protocol. */
function sendNotFound(request: IncomingMessage, response: ServerResponse, error: ConnectError): void {
  const type = request.headers["content-type"];
  if (type?.startsWith("application/grpc-web")) {
    response.setHeaders(setTrailerStatus(new Headers({ "content-type": type }), error)).end();
    return;
  }
  response.writeHead(404, { "content-type": "application/json" }).end(JSON.stringify(errorToJson(error, undefined)));
}

/** A page of an allowed origin may call, with a token, and read the headers that we send. */
function allowOrigin(request: IncomingMessage, response: ServerResponse, allowed: readonly string[]): void {
  const origin = request.headers.origin;
  if (origin === undefined) return;
  response.setHeader("vary", "Origin");
  if (!allowed.includes(origin) && !allowed.includes("*")) return;
  response.setHeader("access-control-allow-origin", origin);
  response.setHeader("access-control-expose-headers", [...cors.exposedHeaders, "idempotent-replay", "x-request-id"]);
  if (request.method !== "OPTIONS") return;
  response.setHeader("access-control-allow-methods", [...cors.allowedMethods]);
  response.setHeader("access-control-allow-headers", [...cors.allowedHeaders, "Authorization", "x-request-id"]);
  response.setHeader("access-control-max-age", 7_200);
}

/** The longest time that a timer of Node's takes. */
const MAX_TIMER_MS = 2 ** 31 - 1;

/** Sets the default deadline where the library reads one: it then makes the signal, and answers when it has passed. */
function setDeadline(request: IncomingMessage): void {
  const { headers } = request;
  headers["connect-timeout-ms"] ??= String(DEFAULT_DEADLINE_MS);
  headers["grpc-timeout"] ??= `${DEFAULT_DEADLINE_MS}m`;
  // A timer for longer would fire at once.
  if (Number(headers["connect-timeout-ms"]) > MAX_TIMER_MS) headers["connect-timeout-ms"] = String(MAX_TIMER_MS);
}

/** Gives a request its id where the library reads one, and each answer to it too, that of the library included. */
function arrive(path: string, request: IncomingMessage, response: ServerResponse): Arrival {
  const requestId = requestIdOf(request.headers["x-request-id"]);
  request.headers["x-request-id"] = requestId;
  response.setHeader("x-request-id", requestId);
  return { requestId, rpc: path.slice(1), beganMs: performance.now() };
}

/** What the library refuses by status alone, before it begins a call: another HTTP method or type of content. */
function recordUnread(pipeline: Pipeline, arrival: Arrival, response: ServerResponse): void {
  response.once("finish", () => {
    const { statusCode: status } = response;
    if (status !== 405 && status !== 415) return;
    const what = status === 405 ? "the HTTP method" : "the content type";
    pipeline.turnAway(arrival, new DomainError("ARGUMENT_INVALID", `${what} is none of an RPC`));
  });
}

/** Answers that are not sent yet: a stop tells their callers not to use the connection again. */
type Unsent = Set<ServerResponse>;

/**
 * Leaves the connection ready for its next request. A body that was refused half-way would stand in the way: it is read
 * to its end, for which requestTimeout sets the time; the library would destroy the request and leave the socket hanging.
 * While the server stops, there is no next request.
 */
function tidyUp(unsent: Unsent, pipeline: Pipeline, request: IncomingMessage, response: ServerResponse): void {
  if (pipeline.stopping) response.shouldKeepAlive = false;
  unsent.add(response);
  response.once("close", () => unsent.delete(response));
  request[Symbol.asyncIterator] = () =>
    request.iterator({ destroyOnReturn: false }) as AsyncGenerator<Buffer, undefined>;
  response.once("finish", () => {
    if (!request.complete) request.resume();
    if (pipeline.stopping) request.socket.end();
  });
}

function createListener(unsent: Unsent, pipeline: Pipeline, options: ConnectDoorOptions) {
  const byMethod = new Map<DescMethod, Rpc>(pipeline.rpcs.map((rpc) => [rpc.method, rpc]));
  const byPath = new Map(pipeline.rpcs.map((rpc) => [`/${rpc.name}`, rpc]));
  const adapter = connectNodeAdapter({
    grpc: false,
    readMaxBytes: MAX_REQUEST_BYTES,
    // Who reads JSON wants to see that a discount is 0.
    jsonOptions: { alwaysEmitImplicit: true },
    requestGate: (context) => admit(pipeline, byMethod.get(context.method) as Rpc, context),
    routes: (router) => addRpcs(router, pipeline.rpcs),
  });
  let probe: Promise<boolean> | undefined;
  const ready = () => {
    // One at a time, however many ask: it takes a connection of those that serve calls.
    probe ??= Promise.try(options.ready).finally(() => {
      probe = undefined;
    });
    return probe;
  };
  const sendReady = (response: ServerResponse) =>
    ready().then(
      (ready) =>
        ready && !pipeline.stopping ? sendText(response, 200, "ready") : sendText(response, 503, "not ready"),
      () => sendText(response, 503, "not ready"),
    );

  return (request: IncomingMessage, response: ServerResponse): unknown => {
    allowOrigin(request, response, options.corsOrigins);
    if (request.method === "OPTIONS") return response.writeHead(204).end();
    const path = request.url?.split("?", 1)[0] ?? "";
    if (path === "/healthz") return sendText(response, 200, "ok");
    if (path === "/readyz") return sendReady(response);
    const webhook = options.webhooks.get(path);
    const rpc = byPath.get(path);
    const arrival = arrive(path, request, response);
    if (webhook) {
      tidyUp(unsent, pipeline, request, response);
      return serveWebhook(webhook, { request, response, arrival, log: options.log });
    }
    if (!rpc) {
      const unknown = new DomainError("METHOD_NOT_SERVED", "there is no such RPC");
      return sendNotFound(request, response, pipeline.turnAway(arrival, unknown));
    }
    if (rpc.method.methodKind === "unary") setDeadline(request);
    tidyUp(unsent, pipeline, request, response);
    recordUnread(pipeline, arrival, response);
    try {
      return adapter(request, response);
    } catch {
      // The library builds a URL from the header `host`, which is whatever the caller sent.
      pipeline.turnAway(arrival, new DomainError("ARGUMENT_INVALID", "the header host is no host"));
      return sendText(response, 400, "bad request");
    }
  };
}

async function closeServer(server: Server, leaveMs: number): Promise<void> {
  const closed = new Promise<void>((resolve) => server.close(() => resolve()));
  server.closeIdleConnections();
  if (!(await within(closed, leaveMs))) server.closeAllConnections();
}

/** Opens the door for Connect and gRPC-Web over HTTP/1.1, with /healthz and /readyz. @throws Error naming HTTP_PORT */
export async function openConnectDoor(pipeline: Pipeline, options: ConnectDoorOptions): Promise<Door> {
  const unsent: Unsent = new Set();
  const server = createServer(
    // Callers that have gone without a word are found out, and their streams ended, as at the gRPC door.
    // A request must be there in time, so that nobody holds a socket by sending slowly; answers may take as they like.
    {
      keepAlive: true,
      keepAliveInitialDelay: KEEPALIVE_MS,
      headersTimeout: 10_000,
      requestTimeout: 30_000,
      keepAliveTimeout: 60_000,
      connectionsCheckingInterval: 5_000,
    },
    createListener(unsent, pipeline, options),
  );
  const port = await listen(server, "HTTP_PORT", options.host, options.port);
  const announceStop = () => {
    for (const response of unsent) response.shouldKeepAlive = false;
  };
  return { port, announceStop, close: (leaveMs) => closeServer(server, leaveMs) };
}
