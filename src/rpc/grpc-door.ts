import { constants, type ServerHttp2Session } from "node:http2";
import { createServer } from "node:net";
import { fromBinary, type Message } from "@bufbuild/protobuf";
import { Code, ConnectError } from "@connectrpc/connect";
import {
  type handleServerStreamingCall,
  type handleUnaryCall,
  Metadata,
  Server,
  ServerCredentials,
  type ServerErrorResponse,
  type ServerInterceptingCall,
  type ServerInterceptor,
  type ServerUnaryCall,
  type ServerWritableStream,
} from "@grpc/grpc-js";
import { DomainError } from "../error.ts";
import { type Call, type Rpc, requestIdOf } from "./call.ts";
import { DEFAULT_DEADLINE_MS, type Door, FLUSH_MS, gone, listen, MAX_REQUEST_BYTES, within } from "./door.ts";
import { encodeStatus, refusalOf, toConnectError } from "./error-map.ts";
import { GrpcContext } from "./grpc-context.ts";
import { addHealth, addReflection } from "./grpc-extras.ts";
import { encodeAnswer } from "./handler.ts";
import type { Pipeline } from "./pipeline.ts";

type Unary = ServerUnaryCall<Buffer, Buffer>;
type Stream = ServerWritableStream<Buffer, Buffer>;

const OK = 0;
const DETAILS = "grpc-status-details-bin";

/** Dead callers are found out, and their streams ended, within this time. */
const KEEPALIVE_MS = 60_000;

function asBuffer(bytes: Uint8Array): Buffer {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

function toStatus(error: ConnectError, trailer: Metadata): ServerErrorResponse {
  trailer.set(DETAILS, asBuffer(encodeStatus(error)));
  // Both libraries number the codes as gRPC does, each by a type of its own.
  const code = error.code as number;
  return { name: error.name, message: error.rawMessage, code, details: error.rawMessage, metadata: trailer };
}

function decode(rpc: Rpc, bytes: Uint8Array): Message {
  try {
    return fromBinary(rpc.method.input, bytes);
  } catch {
    throw new DomainError("ARGUMENT_INVALID", `the request is not a ${rpc.method.input.typeName}`);
  }
}

/** Gives up a call whose caller has gone or waits no longer. */
function leave(call: Call, context: GrpcContext, reason: DomainError): void {
  call.abandon(reason);
  context.abort(reason);
}

/** Everything of a unary call that may fail. */
async function answer(call: Call, context: GrpcContext, metadata: Metadata, bytes: Uint8Array): Promise<Buffer> {
  const pending = call.authorize(metadata.get("authorization")[0] as string | undefined);
  if (pending) await pending;
  const message = await call.run(decode(call.rpc, bytes), context);
  const encoded = asBuffer(encodeAnswer(call.rpc.method.output, message));
  call.complete();
  return encoded;
}

/**
 * Watches over a unary call: the library says `cancelled` when the caller has gone and when the deadline that the caller
 * set has passed, a timer of ours keeps the default one. The function returned ends the watch.
 */
function watch(grpc: Unary, call: Call, context: GrpcContext, byDefault: boolean): () => void {
  let over = false;
  const stop = () => {
    // It says so after each answer too.
    if (!over) leave(call, context, gone(context.timeoutMs()));
  };
  const timer = byDefault ? setTimeout(stop, DEFAULT_DEADLINE_MS) : undefined;
  grpc.on("cancelled", stop);
  return () => {
    over = true;
    clearTimeout(timer);
  };
}

function serveUnary(pipeline: Pipeline, rpc: Rpc): handleUnaryCall<Buffer, Buffer> {
  return (grpc, callback) => {
    const call = pipeline.begin(rpc, grpc.metadata.get("x-request-id")[0] as string | undefined);
    const asked = Number(grpc.getDeadline());
    const byDefault = asked === Number.POSITIVE_INFINITY;
    const context = new GrpcContext(call, grpc.metadata, byDefault ? Date.now() + DEFAULT_DEADLINE_MS : asked);
    const unwatch = watch(grpc, call, context, byDefault);
    answer(call, context, grpc.metadata, grpc.request).then(
      (bytes) => {
        unwatch();
        grpc.sendMetadata(context.header());
        callback(null, bytes, context.trailer());
      },
      (error: unknown) => {
        unwatch();
        const refusal = call.refuse(error);
        context.abort(refusal);
        callback(toStatus(refusal, context.header()));
      },
    );
  };
}

function writable(stream: Stream): Promise<void> {
  return new Promise((resolve) => {
    const done = () => {
      stream.off("drain", done).off("cancelled", done);
      resolve();
    };
    stream.on("drain", done).on("cancelled", done);
  });
}

/** Writes at the pace at which the caller reads: no more than the stream's own small buffer waits in memory. */
async function pump(stream: Stream, call: Call, context: GrpcContext): Promise<void> {
  const pending = call.authorize(stream.metadata.get("authorization")[0] as string | undefined);
  if (pending) await pending;
  let begun = false;
  for await (const message of call.stream(decode(call.rpc, stream.request), context)) {
    if (!begun) stream.sendMetadata(context.header());
    begun = true;
    if (stream.cancelled) return;
    if (!stream.write(asBuffer(encodeAnswer(call.rpc.method.output, message)))) await writable(stream);
  }
  if (!begun) stream.sendMetadata(context.header());
}

function serveStream(pipeline: Pipeline, rpc: Rpc): handleServerStreamingCall<Buffer, Buffer> {
  return (stream) => {
    const call = pipeline.begin(rpc, stream.metadata.get("x-request-id")[0] as string | undefined);
    const deadlineMs = Number(stream.getDeadline());
    const context = new GrpcContext(call, stream.metadata, deadlineMs);
    stream.on("cancelled", () => leave(call, context, gone(context.timeoutMs())));
    pump(stream, call, context)
      .then(
        () => stream.end(context.trailer()),
        (error: unknown) => stream.emit("error", toStatus(call.refuse(error), context.header())),
      )
      .finally(() => context.abort(gone(context.timeoutMs())));
  };
}

/**
 * Gives the refusals that the library makes by itself (too large, past the deadline, no such RPC) a reason like all
 * others have, and a log line. It sends them past all interceptors, hence the method put into its call object.
 */
function explain(pipeline: Pipeline): ServerInterceptor {
  return (method, call) => {
    const beganMs = performance.now();
    const send = call.sendStatus;
    call.sendStatus = (status) => {
      if (status.code === OK || status.metadata?.get(DETAILS).length) return send.call(call, status);
      const refusal = refusalOf(new ConnectError(status.details ?? "", status.code as number));
      if (refusal.reason === "INTERNAL") return send.call(call, status);
      const metadata = status.metadata ?? new Metadata();
      if (refusal.reason === "DEADLINE_EXCEEDED") {
        // Such a call has run, and is in the log already.
        metadata.set(DETAILS, asBuffer(encodeStatus(toConnectError(refusal, ""))));
      } else {
        const sent = (call as unknown as { metadata: Metadata }).metadata.get("x-request-id")[0];
        const requestId = requestIdOf(sent);
        const error = pipeline.turnAway({ requestId, rpc: method.path.slice(1), beganMs }, refusal);
        metadata.set("x-request-id", requestId);
        metadata.set(DETAILS, asBuffer(encodeStatus(error)));
      }
      send.call(call, { ...status, metadata });
    };
    return call as ServerInterceptingCall;
  };
}

const keepBytes = (bytes: Buffer): Buffer => bytes;

/** The library answers an unknown RPC before any interceptor; as a call like others it gets its reason. */
function serveUnknown(server: Server): void {
  const lookup = server as unknown as { handlers: Map<string, unknown>; _retrieveHandler(path: string): unknown };
  lookup._retrieveHandler = (path) =>
    lookup.handlers.get(path) ?? {
      type: "bidi",
      path,
      serialize: keepBytes,
      deserialize: keepBytes,
      func: (stream: ServerWritableStream<Buffer, Buffer>) => {
        stream.emit("error", { code: Code.Unimplemented, details: "there is no such RPC", message: "" });
      },
    };
}

function addRpc(server: Server, pipeline: Pipeline, rpc: Rpc): void {
  const unary = rpc.method.methodKind === "unary";
  const definition = {
    path: `/${rpc.name}`,
    requestStream: false as const,
    responseStream: !unary,
    requestSerialize: keepBytes,
    requestDeserialize: keepBytes,
    responseSerialize: keepBytes,
    responseDeserialize: keepBytes,
  };
  server.addService({ call: definition }, { call: unary ? serveUnary(pipeline, rpc) : serveStream(pipeline, rpc) });
}

/** How long callers may take to leave after the GOAWAY, in milliseconds: what they have sent by then is still answered. */
const LEAVE_MS = 500;
const LAST_STREAM = 2 ** 31 - 1;

/**
 * Asks callers to send nothing more on their connections, and waits until they have left. Without it a connection is
 * closed under calls that are on their way, and their callers hear INTERNAL instead of UNAVAILABLE.
 */
async function seeOff(server: Server): Promise<void> {
  // The library keeps its connections to itself.
  const { sessions } = server as unknown as { sessions: ReadonlyMap<ServerHttp2Session, unknown> };
  const left = [...sessions.keys()].map((session) => {
    session.goaway(constants.NGHTTP2_NO_ERROR, LAST_STREAM);
    return new Promise((resolve) => session.once("close", resolve));
  });
  await within(Promise.all(left), LEAVE_MS);
}

async function closeServer(server: Server): Promise<void> {
  await seeOff(server);
  const closed = new Promise<void>((resolve) => server.tryShutdown(() => resolve()));
  if (!(await within(closed, FLUSH_MS))) server.forceShutdown();
}

/** Opens the gRPC door: all services of the pipeline, health and reflection. @throws Error naming GRPC_PORT */
export async function openGrpcDoor(pipeline: Pipeline, host: string, port: number): Promise<Door> {
  const server = new Server({
    "grpc.max_receive_message_length": MAX_REQUEST_BYTES,
    "grpc.enable_channelz": 0,
    "grpc.keepalive_time_ms": KEEPALIVE_MS,
    interceptors: [explain(pipeline)],
  });
  for (const rpc of pipeline.rpcs) addRpc(server, pipeline, rpc);
  const announceStop = addHealth(server, pipeline.services);
  addReflection(server, pipeline.services);
  serveUnknown(server);
  // With a socket of our own a port in use is an error with a code; the library would make it a text, and print it.
  const injector = server.createConnectionInjector(ServerCredentials.createInsecure());
  const sockets = createServer({ noDelay: true }, (socket) => injector.injectConnection(socket));
  const bound = await listen(sockets, "GRPC_PORT", host, port);
  const close = () => {
    sockets.close();
    return closeServer(server);
  };
  return { port: bound, announceStop, close };
}
