import { constants, type ServerHttp2Session } from "node:http2";
import { createServer } from "node:net";
import {
  type handleServerStreamingCall,
  Server,
  ServerCredentials,
  type ServerInterceptingCall,
  type ServerInterceptor,
  type ServerWritableStream,
} from "@grpc/grpc-js";
import type { Call, Rpc } from "./call.ts";
import { type Door, FLUSH_MS, gone, listen, MAX_REQUEST_BYTES, within } from "./door.ts";
import { GrpcContext } from "./grpc-context.ts";
import { addHealth, addReflection } from "./grpc-extras.ts";
import { asBuffer, explain, toStatus, unimplemented } from "./grpc-status.ts";
import { decode, leave, UnaryCall } from "./grpc-unary.ts";
import { encodeAnswer } from "./handler.ts";
import type { Pipeline } from "./pipeline.ts";

type Stream = ServerWritableStream<Buffer, Buffer>;

/** Dead callers are found out, and their streams ended, within this time. */
const KEEPALIVE_MS = 60_000;

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
        (error: unknown) => stream.emit("error", { ...toStatus(call.refuse(error), context.header()), message: "" }),
      )
      .finally(() => context.abort(gone(context.timeoutMs())));
  };
}

/** The library's own way to the handler of a unary call ends here: the call has been taken over. */
const nothing = { start() {} } as unknown as ServerInterceptingCall;

function intercept(pipeline: Pipeline): ServerInterceptor {
  const unary = new Map(pipeline.rpcs.filter(isUnary).map((rpc) => [`/${rpc.name}`, rpc]));
  return ({ path }, call) => {
    const rpc = unary.get(path);
    const taken = rpc && new UnaryCall(pipeline, rpc, call);
    explain(pipeline, path, call, () => taken?.open);
    if (!taken) return call as ServerInterceptingCall;
    call.start(taken);
    return nothing;
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

function addRpc(server: Server, pipeline: Pipeline, rpc: Rpc): void {
  const unary = isUnary(rpc);
  const definition = {
    path: `/${rpc.name}`,
    requestStream: false as const,
    responseStream: !unary,
    requestSerialize: keepBytes,
    requestDeserialize: keepBytes,
    responseSerialize: keepBytes,
    responseDeserialize: keepBytes,
  };
  server.addService({ call: definition }, { call: unary ? () => {} : serveStream(pipeline, rpc) });
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
    interceptors: [intercept(pipeline)],
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
