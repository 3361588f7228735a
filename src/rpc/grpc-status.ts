import { Code, ConnectError } from "@connectrpc/connect";
import { Metadata, type ServerInterceptingCallInterface } from "@grpc/grpc-js";
import { requestIdOf } from "./call.ts";
import { encodeStatus, refusalOf, toConnectError } from "./error-map.ts";
import type { Pipeline } from "./pipeline.ts";

/** A call as the library gives it to interceptors. */
export type RawCall = ServerInterceptingCallInterface;
export type Status = Parameters<RawCall["sendStatus"]>[0];

const OK = 0;
const DETAILS = "grpc-status-details-bin";

export function asBuffer(bytes: Uint8Array): Buffer {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

/** A refusal as the library sends it. */
export function toStatus(error: ConnectError, headers: Record<string, string>) {
  const metadata = Metadata.fromHttp2Headers(headers);
  metadata.set(DETAILS, asBuffer(encodeStatus(error)));
  // Both libraries number the codes as gRPC does, each by a type of its own.
  return { code: error.code as number, details: error.rawMessage, metadata };
}

const headersBy = new WeakMap<ConnectError, Readonly<Record<string, string>>>();

/** A refusal as HTTP/2 has it; of one that goes to many, made once. */
export function statusHeaders(error: ConnectError): Readonly<Record<string, string>> {
  const known = headersBy.get(error);
  if (known) return known;
  const headers = {
    "grpc-status": String(error.code),
    // Percent-encoded, which half a character can't be.
    "grpc-message": encodeURI(error.rawMessage.toWellFormed()),
    [DETAILS]: asBuffer(encodeStatus(error)).toString("base64"),
  };
  headersBy.set(error, headers);
  return headers;
}

/** The status of a call that the library refuses by itself. */
export function unimplemented(details: string): Status {
  return { code: Code.Unimplemented as number, details };
}

/**
 * Gives the refusals that the library makes by itself (too large, past the deadline, no such RPC) a reason like all
 * others have, and a log line. It sends them past all interceptors, hence the method put into its call object.
 */
export function explain(pipeline: Pipeline, path: string, call: RawCall): void {
  const beganMs = performance.now();
  const send = call.sendStatus;
  call.sendStatus = (status) => {
    if (status.code === OK || status.metadata?.get(DETAILS).length) return send.call(call, status);
    // What it calls internal is about what the caller sent: bytes that can't be decompressed, a deadline that can't be read.
    const code = status.code === (Code.Internal as number) ? Code.InvalidArgument : (status.code as number);
    const refusal = refusalOf(new ConnectError(status.details ?? "", code));
    const metadata = status.metadata ?? new Metadata();
    if (refusal.reason === "DEADLINE_EXCEEDED") {
      // It is in the log when it has been given up.
      metadata.set(DETAILS, asBuffer(encodeStatus(toConnectError(refusal, ""))));
    } else {
      const sent = (call as unknown as { metadata: Metadata }).metadata.get("x-request-id")[0];
      const requestId = requestIdOf(sent);
      const error = pipeline.turnAway({ requestId, rpc: path.slice(1), beganMs }, refusal);
      metadata.set("x-request-id", requestId);
      metadata.set(DETAILS, asBuffer(encodeStatus(error)));
    }
    send.call(call, { ...status, code, metadata });
  };
}
