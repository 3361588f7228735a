/** Real clients of both doors behind one interface, with refusals in one shape, so that a test can go through all of them. */
import {
  create,
  type DescMessage,
  type DescMethodServerStreaming,
  type DescMethodUnary,
  fromBinary,
  type MessageInitShape,
  type MessageShape,
  toBinary,
} from "@bufbuild/protobuf";
import { anyUnpack } from "@bufbuild/protobuf/wkt";
import { ConnectError, type Transport } from "@connectrpc/connect";
import { createConnectTransport, createGrpcWebTransport } from "@connectrpc/connect-node";
import { Client, type ClientReadableStream, credentials, Metadata, type ServiceError } from "@grpc/grpc-js";
import { BadRequestSchema, ErrorInfoSchema, RetryInfoSchema } from "../../gen/google/rpc/error_details_pb.ts";
import { StatusSchema } from "../../gen/google/rpc/status_pb.ts";
import { codeName } from "../../src/rpc/error-map.ts";

export type Options = {
  token?: string | undefined;
  headers?: Record<string, string>;
  timeoutMs?: number;
  signal?: AbortSignal;
};

/** A refusal as the client of either door decodes it. */
export class Refused extends Error {
  code = "";
  reason: string | undefined;
  metadata: Record<string, string> = {};
  violations: { field: string; description: string }[] = [];
  retryMs: number | undefined;
}

export type Answer<O extends DescMessage> = { message: MessageShape<O>; header(name: string): string | null };

export type DoorClient = {
  name: string;
  unary<I extends DescMessage, O extends DescMessage>(
    method: DescMethodUnary<I, O>,
    request: MessageInitShape<I>,
    options?: Options,
  ): Promise<Answer<O>>;
  stream<I extends DescMessage, O extends DescMessage>(
    method: DescMethodServerStreaming<I, O>,
    request: MessageInitShape<I>,
    options?: Options,
  ): AsyncIterable<MessageShape<O>>;
  close(): void;
};

type Details = { find<D extends DescMessage>(desc: D): MessageShape<D> | undefined };

function refused(code: number, message: string, details: Details): Refused {
  const error = new Refused(message);
  const info = details.find(ErrorInfoSchema);
  const retry = details.find(RetryInfoSchema)?.retryDelay;
  error.code = codeName(code);
  error.reason = info?.reason;
  error.metadata = { ...info?.metadata };
  error.violations = (details.find(BadRequestSchema)?.fieldViolations ?? []).map(({ field, description }) => ({
    field,
    description,
  }));
  error.retryMs = retry && Number(retry.seconds) * 1_000 + retry.nanos / 1e6;
  return error;
}

function fromServiceError(error: ServiceError): Refused {
  const [bytes] = error.metadata.get("grpc-status-details-bin");
  const status = bytes ? fromBinary(StatusSchema, bytes as Buffer) : create(StatusSchema);
  return refused(error.code, error.details, {
    find: <D extends DescMessage>(desc: D) =>
      status.details.map((any) => anyUnpack(any, desc)).find((detail) => detail !== undefined),
  });
}

function fromConnectError(error: unknown): Refused {
  const known = ConnectError.from(error);
  return refused(known.code, known.rawMessage, { find: (desc) => known.findDetails(desc)[0] });
}

function headersOf({ token, headers }: Options): Record<string, string> {
  return token === undefined ? { ...headers } : { ...headers, authorization: `Bearer ${token}` };
}

function toMetadata(options: Options): Metadata {
  const metadata = new Metadata();
  for (const [name, value] of Object.entries(headersOf(options))) metadata.set(name, value);
  return metadata;
}

function pathOf(method: DescMethodUnary | DescMethodServerStreaming): string {
  return `/${method.parent.typeName}/${method.name}`;
}

function callOptions({ timeoutMs }: Options) {
  return timeoutMs === undefined ? {} : { deadline: Date.now() + timeoutMs };
}

/** A grpc-js client on a connection of its own. */
export function grpcClient(port: number): DoorClient & { raw: Client } {
  const raw = new Client(`127.0.0.1:${port}`, credentials.createInsecure(), { "grpc.use_local_subchannel_pool": 1 });
  return {
    name: "gRPC",
    raw,
    close: () => raw.close(),
    unary: (method, request, options = {}) =>
      new Promise((resolve, reject) => {
        let header = new Metadata();
        const call = raw.makeUnaryRequest(
          pathOf(method as unknown as DescMethodUnary),
          (value: MessageInitShape<typeof method.input>) =>
            Buffer.from(toBinary(method.input, create(method.input, value))),
          (bytes: Buffer) => fromBinary(method.output, bytes),
          request,
          toMetadata(options),
          callOptions(options),
          (error, message) => {
            if (error) reject(fromServiceError(error));
            else if (message) resolve({ message, header: (name) => (header.get(name)[0] as string) ?? null });
          },
        );
        call.on("metadata", (metadata) => {
          header = metadata;
        });
        options.signal?.addEventListener("abort", () => call.cancel());
      }),
    async *stream(method, request, options = {}) {
      const call: ClientReadableStream<MessageShape<typeof method.output>> = raw.makeServerStreamRequest(
        pathOf(method as unknown as DescMethodServerStreaming),
        (value: MessageInitShape<typeof method.input>) =>
          Buffer.from(toBinary(method.input, create(method.input, value))),
        (bytes: Buffer) => fromBinary(method.output, bytes),
        request,
        toMetadata(options),
        callOptions(options),
      );
      options.signal?.addEventListener("abort", () => call.cancel());
      try {
        for await (const message of call) yield message;
      } catch (error) {
        throw fromServiceError(error as ServiceError);
      } finally {
        call.cancel();
      }
    },
  };
}

async function* one<T>(value: T): AsyncIterable<T> {
  yield value;
}

function overTransport(name: string, transport: Transport): DoorClient {
  return {
    name,
    close: () => {},
    unary: async (method, request, options = {}) => {
      const { signal, timeoutMs } = options;
      const answer = await transport.unary(method, signal, timeoutMs, headersOf(options), request).catch((error) => {
        throw fromConnectError(error);
      });
      return { message: answer.message, header: (key) => answer.header.get(key) };
    },
    async *stream(method, request, options = {}) {
      const { signal, timeoutMs } = options;
      const left = new AbortController();
      const either = signal ? AbortSignal.any([signal, left.signal]) : left.signal;
      try {
        const answer = await transport.stream(method, either, timeoutMs, headersOf(options), one(request));
        yield* answer.message;
      } catch (error) {
        throw fromConnectError(error);
      } finally {
        left.abort();
      }
    },
  };
}

export function connectClient(port: number, useBinaryFormat = true): DoorClient {
  const transport = createConnectTransport({
    httpVersion: "1.1",
    baseUrl: `http://127.0.0.1:${port}`,
    useBinaryFormat,
  });
  return overTransport(useBinaryFormat ? "Connect" : "Connect JSON", transport);
}

export function grpcWebClient(port: number): DoorClient {
  return overTransport("gRPC-Web", createGrpcWebTransport({ httpVersion: "1.1", baseUrl: `http://127.0.0.1:${port}` }));
}
