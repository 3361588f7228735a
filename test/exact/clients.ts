/** Real clients of every door as Connect transports, so that one story can be told through all of them. */
import { execFile } from "node:child_process";
import { join } from "node:path";
import { promisify } from "node:util";
import {
  create,
  type DescMessage,
  type DescMethodUnary,
  fromBinary,
  fromJsonString,
  type MessageInitShape,
  type MessageShape,
  toBinary,
  toJsonString,
} from "@bufbuild/protobuf";
import { anyUnpack } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError, type Transport, type UnaryResponse } from "@connectrpc/connect";
import { createConnectTransport } from "@connectrpc/connect-node";
import { Client, credentials, Metadata, type ServiceError } from "@grpc/grpc-js";
import { ErrorInfoSchema } from "../../gen/google/rpc/error_details_pb.ts";
import { StatusSchema } from "../../gen/google/rpc/status_pb.ts";

const BUF = join(import.meta.dirname, "../../node_modules/.bin/buf");
const run = promisify(execFile);

export type Ports = { readonly grpcPort: number; readonly httpPort: number };

type Unary = <I extends DescMessage, O extends DescMessage>(
  method: DescMethodUnary<I, O>,
  request: MessageShape<I>,
) => Promise<{ message: MessageShape<O>; header: Headers }>;

/** A transport that knows unary calls only. */
function unaryTransport(call: Unary): Transport {
  return {
    async unary<I extends DescMessage, O extends DescMessage>(
      method: DescMethodUnary<I, O>,
      _signal: unknown,
      _timeoutMs: unknown,
      _header: unknown,
      input: MessageInitShape<I>,
    ): Promise<UnaryResponse<I, O>> {
      const { message, header } = await call(method, create(method.input, input));
      return { stream: false, service: method.parent, method, header, message, trailer: new Headers() };
    },
    stream: () => Promise.reject(new Error("no streams here")),
  };
}

function toConnectError(error: ServiceError): ConnectError {
  const connectError = new ConnectError(error.details, error.code as number);
  const [bytes] = error.metadata.get("grpc-status-details-bin");
  if (bytes) {
    for (const any of fromBinary(StatusSchema, bytes as Buffer).details) {
      const info = anyUnpack(any, ErrorInfoSchema);
      if (info) connectError.details.push({ type: ErrorInfoSchema.typeName, value: any.value });
    }
  }
  return connectError;
}

export type RawAnswer = { bytes: Buffer; replayed: boolean };

/** A grpc-js client on a connection of its own. */
export class GrpcClient {
  readonly #client: Client;
  readonly #metadata = new Metadata();

  constructor(ports: Ports, token: string) {
    this.#client = new Client(`127.0.0.1:${ports.grpcPort}`, credentials.createInsecure(), {
      "grpc.use_local_subchannel_pool": 1,
    });
    this.#metadata.set("authorization", `Bearer ${token}`);
  }

  /** The answer as it is on the wire. Rejects with a ConnectError. */
  raw<I extends DescMessage>(method: DescMethodUnary<I>, request: MessageInitShape<I>): Promise<RawAnswer> {
    return new Promise((resolve, reject) => {
      let replayed = false;
      const call = this.#client.makeUnaryRequest(
        `/${method.parent.typeName}/${method.name}`,
        (message: MessageShape<I>) => Buffer.from(toBinary(method.input, message)),
        (bytes: Buffer) => bytes,
        create(method.input, request),
        this.#metadata,
        { deadline: Date.now() + 25_000 },
        (error, bytes) => (bytes ? resolve({ bytes, replayed }) : reject(toConnectError(error as ServiceError))),
      );
      call.on("metadata", (header) => {
        replayed = header.get("idempotent-replay")[0] === "true";
      });
    });
  }

  get transport(): Transport {
    return unaryTransport(async (method, request) => {
      const { bytes } = await this.raw(method as unknown as DescMethodUnary, request as never);
      return { message: fromBinary(method.output, bytes), header: new Headers() };
    });
  }

  close(): void {
    this.#client.close();
  }
}

function connectTransport({ httpPort }: Ports, token: string, useBinaryFormat: boolean): Transport {
  return createConnectTransport({
    httpVersion: "1.1",
    baseUrl: `http://127.0.0.1:${httpPort}`,
    useBinaryFormat,
    interceptors: [
      (next) => (request) => {
        request.header.set("authorization", `Bearer ${token}`);
        return next(request);
      },
    ],
  });
}

/** `buf curl` that knows nothing of the contract: it asks the server's reflection. */
function bufCurlTransport({ grpcPort }: Ports, token: string): Transport {
  return unaryTransport(async (method, request) => {
    const url = `http://127.0.0.1:${grpcPort}/${method.parent.typeName}/${method.name}`;
    const data = toJsonString(method.input, request);
    const flags = ["--protocol", "grpc", "--http2-prior-knowledge", "--header", `authorization: Bearer ${token}`];
    try {
      const { stdout } = await run(BUF, ["curl", ...flags, "--data", data, url]);
      return { message: fromJsonString(method.output, stdout), header: new Headers() };
    } catch (error) {
      const { stderr, code } = error as { stderr?: string; code?: number };
      throw new ConnectError(stderr ?? String(error), Number(code) >> 3);
    }
  });
}

/** The clients that people and programs use, by name. */
export const doors: Readonly<Record<string, (ports: Ports, token: string) => Transport>> = {
  "grpc-js": (ports, token) => new GrpcClient(ports, token).transport,
  "Connect over HTTP/1.1": (ports, token) => connectTransport(ports, token, true),
  "Connect JSON over HTTP/1.1": (ports, token) => connectTransport(ports, token, false),
  "buf curl against reflection": bufCurlTransport,
};

/** The reason of a refusal, or the name of its code when it carries none. */
export function reasonOf(error: unknown): string {
  const refusal = ConnectError.from(error);
  return (
    refusal.findDetails(ErrorInfoSchema)[0]?.reason ?? `without a reason: ${Code[refusal.code]} ${refusal.message}`
  );
}

/** How often each outcome came: `{ OK: 50, INSUFFICIENT_STOCK: 150 }`. */
export async function tally(calls: readonly Promise<unknown>[]): Promise<Record<string, number>> {
  const counts: Record<string, number> = {};
  for (const result of await Promise.allSettled(calls)) {
    const outcome = result.status === "fulfilled" ? "OK" : reasonOf(result.reason);
    counts[outcome] = (counts[outcome] ?? 0) + 1;
  }
  return counts;
}
