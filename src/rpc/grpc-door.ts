import type { Http2Server, ServerHttp2Session, ServerHttp2Stream } from "node:http2";
import { createServer } from "node:net";
import {
  type handleServerStreamingCall,
  Metadata,
  Server,
  ServerCredentials,
  type ServerInterceptingCall,
  type ServerInterceptor,
  type ServerWritableStream,
} from "@grpc/grpc-js";
import type { Call, Rpc } from "./call.ts";
import { type Door, gone, KEEPALIVE_MS, listen, MAX_REQUEST_BYTES, within } from "./door.ts";
import { GrpcContext } from "./grpc-context.ts";
import { addHealth, addReflection } from "./grpc-extras.ts";
import { asBuffer, explain, toStatus, unimplemented } from "./grpc-status.ts";
import { decode, leave, UnaryCall } from "./grpc-unary.ts";
import { encodeStreamed } from "./handler.ts";
import type { Pipeline } from "./pipeline.ts";

type Stream = ServerWritableStream<Buffer, Buffer>;

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
    if (!begun) stream.sendMetadata(Metadata.fromHttp2Headers(context.header()));
    begun = true;
    if (stream.cancelled) return;
    if (!stream.write(asBuffer(encodeStreamed(call.rpc.method.output, message)))) await writable(stream);
  }
  if (!begun) stream.sendMetadata(Metadata.fromHttp2Headers(context.header()));
}

function serveStream(pipeline: Pipeline, rpc: Rpc): handleServerStreamingCall<Buffer, Buffer> {
  return (stream) => {
    const call = pipeline.begin(rpc, stream.metadata.get("x-request-id")[0] as string | undefined);
    const deadlineMs = Number(stream.getDeadline());
    const context = new GrpcContext(call, stream.metadata.toHttp2Headers(), deadlineMs);
    stream.on("cancelled", () => leave(call, context, gone(context.timeoutMs())));
    pump(stream, call, context)
      .then(
        () => stream.end(Metadata.fromHttp2Headers(context.trailer() ?? {})),
        (error: unknown) => stream.emit("error", { ...toStatus(call.refuse(error), context.header()), message: "" }),
      )
      .finally(() => context.abort(gone(context.timeoutMs())));
  };
}

function intercept(pipeline: Pipeline): ServerInterceptor {
  return ({ path }, call) => {
    explain(pipeline, path, call);
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
        stream.emit("error", { ...unimplemented("there is no such RPC"), message: "" });
      },
    };
}

function isUnary(rpc: Rpc): boolean {
  return rpc.method.methodKind === "unary";
}

function addStream(server: Server, pipeline: Pipeline, rpc: Rpc): void {
  const definition = {
    path: `/${rpc.name}`,
    requestStream: false as const,
    responseStream: true as const,
    requestSerialize: keepBytes,
    requestDeserialize: keepBytes,
    responseSerialize: keepBytes,
    responseDeserialize: keepBytes,
  };
  server.addService({ call: definition }, { call: serveStream(pipeline, rpc) });
}

/**
 * What the library keeps to itself: its HTTP/2 server, and the connections. Its list of all of them is empty without
 * channelz.
 */
function innerOf(server: Server): Map<Http2Server, { sessions: ReadonlySet<ServerHttp2Session> }> {
  return (server as unknown as { http2Servers: ReturnType<typeof innerOf> }).http2Servers;
}

/** Takes the unary calls before the library does. */
function takeUnary(server: Server, pipeline: Pipeline): void {
  const unary = new Map(pipeline.rpcs.filter(isUnary).map((rpc) => [`/${rpc.name}`, rpc]));
  for (const inner of innerOf(server).keys()) {
    const others = inner.listeners("stream");
    inner.removeAllListeners("stream").on("stream", (stream, headers, ...rest) => {
      const rpc = unary.get(headers[":path"] ?? "");
      if (rpc) UnaryCall.serve(pipeline, rpc, stream as ServerHttp2Stream, headers);
      else for (const listener of others) listener.call(inner, stream, headers, ...rest);
    });
  }
}

function sessionsOf(server: Server): ServerHttp2Session[] {
  return [...innerOf(server).values()].flatMap(({ sessions }) => [...sessions]);
}

/**
 * Tells callers to go elsewhere, and waits until they have left: of a connection that is closed under calls which are on
 * their way, callers may hear INTERNAL. Not until the library says so: it counts those as closed that are about to be.
 */
async function closeServer(server: Server, leaveMs: number): Promise<void> {
  const open = sessionsOf(server).filter((session) => !session.destroyed);
  const closed = Promise.all(open.map((session) => new Promise<void>((resolve) => session.once("close", resolve))));
  server.tryShutdown(() => {});
  if (await within(closed, leaveMs)) return;
  // The library's own forceShutdown finds no connections here.
  for (const session of open) session.destroy();
}

/** Opens the gRPC door: all services of the pipeline, health and reflection. @throws Error naming GRPC_PORT */
export async function openGrpcDoor(pipeline: Pipeline, host: string, port: number): Promise<Door> {
  const server = new Server({
    "grpc.max_receive_message_length": MAX_REQUEST_BYTES,
    "grpc.enable_channelz": 0,
    "grpc.keepalive_time_ms": KEEPALIVE_MS,
    interceptors: [intercept(pipeline)],
  });
  for (const rpc of pipeline.rpcs) if (!isUnary(rpc)) addStream(server, pipeline, rpc);
  const announceStop = addHealth(server, pipeline.services);
  addReflection(server, pipeline.services);
  serveUnknown(server);
  // With a socket of our own a port in use is an error with a code; the library would make it a text, and print it.
  const injector = server.createConnectionInjector(ServerCredentials.createInsecure());
  takeUnary(server, pipeline);
  const sockets = createServer({ noDelay: true }, (socket) => injector.injectConnection(socket));
  const bound = await listen(sockets, "GRPC_PORT", host, port);
  const close = (leaveMs: number) => {
    sockets.close();
    return closeServer(server, leaveMs);
  };
  return { port: bound, announceStop, close };
}
