import type { ServerHttp2Stream } from "node:http2";
import { fromBinary, type Message } from "@bufbuild/protobuf";
import type { Metadata } from "@grpc/grpc-js";
import { DomainError } from "../error.ts";
import type { Call, Rpc } from "./call.ts";
import { DEFAULT_DEADLINE_MS, gone } from "./door.ts";
import { GrpcContext } from "./grpc-context.ts";
import { asBuffer, type RawCall, toStatus } from "./grpc-status.ts";
import { encodeAnswer } from "./handler.ts";
import type { Pipeline } from "./pipeline.ts";

const OK = { code: 0, details: "OK" };

/** @throws DomainError ARGUMENT_INVALID */
export function decode(rpc: Rpc, bytes: Uint8Array): Message {
  try {
    return fromBinary(rpc.method.input, bytes);
  } catch {
    throw new DomainError("ARGUMENT_INVALID", `the request is not a ${rpc.method.input.typeName}`);
  }
}

/** Gives up a call whose caller has gone or waits no longer. */
export function leave(call: Call, context: GrpcContext, reason: DomainError): void {
  call.abandon(reason);
  context.abort(reason);
}

/**
 * A unary call, taken over from the library where interceptors get it: its own way from there to a handler makes a
 * writable stream for each call.
 */
export class UnaryCall {
  readonly #pipeline: Pipeline;
  readonly #rpc: Rpc;
  readonly #grpc: RawCall;
  #bytes: Buffer | undefined;
  #timer: NodeJS.Timeout | undefined;
  #running = false;
  /** Both while the call is open. */
  #call: Call | undefined;
  #context: GrpcContext | undefined;

  constructor(pipeline: Pipeline, rpc: Rpc, grpc: RawCall) {
    this.#pipeline = pipeline;
    this.#rpc = rpc;
    this.#grpc = grpc;
  }

  /** The call, from its headers to its answer. */
  get open(): Call | undefined {
    return this.#call;
  }

  /** Begins the call: its request is read when it is known who calls, and has to be there within the deadline. */
  onReceiveMetadata(metadata: Metadata): void {
    const call = this.#pipeline.begin(this.#rpc, metadata.get("x-request-id")[0] as string | undefined);
    const asked = Number(this.#grpc.getDeadline());
    const byDefault = asked === Number.POSITIVE_INFINITY;
    this.#call = call;
    this.#context = new GrpcContext(call, metadata, byDefault ? Date.now() + DEFAULT_DEADLINE_MS : asked);
    // Where the caller sets a deadline, the library answers when it has passed.
    if (byDefault) this.#timer = setTimeout(() => this.#expire(), DEFAULT_DEADLINE_MS);
    try {
      const pending = call.authorize(metadata.get("authorization")[0] as string | undefined);
      const read = () => this.#grpc.startRead();
      if (pending) pending.then(read, (error: unknown) => this.#refuse(error));
      else read();
    } catch (error) {
      this.#refuse(error);
    }
  }

  onReceiveMessage(bytes: Buffer): void {
    if (this.#bytes) {
      this.#refuse(this.#miscounted("a second"));
    } else {
      this.#bytes = bytes;
      this.#grpc.startRead();
    }
  }

  onReceiveHalfClose(): void {
    // A stream that was reset ends, too, before it is cancelled.
    if (this.#stream.closed) return;
    if (this.#bytes) void this.#answer(this.#bytes);
    else this.#refuse(this.#miscounted("no"));
  }

  /** The caller has gone, or the deadline that it set has passed. It is called after each answer too. */
  onCancel(): void {
    if (this.#call && this.#context) leave(this.#call, this.#context, gone(this.#context.timeoutMs()));
    if (!this.#running) this.#end();
    // The engine frees a closed stream only with the old generation: what its listeners hold would live as long.
    this.#stream.removeAllListeners("data").removeAllListeners("end");
  }

  /** The library keeps it to itself. */
  get #stream(): ServerHttp2Stream {
    return (this.#grpc as unknown as { stream: ServerHttp2Stream }).stream;
  }

  #expire(): void {
    const late = new DomainError("DEADLINE_EXCEEDED", "the deadline has passed");
    if (this.#running && this.#call && this.#context) leave(this.#call, this.#context, late);
    else this.#refuse(late);
  }

  /** As gRPC has it for another number of requests than one, in the words of the library. */
  #miscounted(many: "no" | "a second"): DomainError {
    const method = `/${this.#rpc.name}`;
    return new DomainError(
      "METHOD_NOT_SERVED",
      `Received ${many} request message for server streaming method ${method}`,
    );
  }

  /** Does everything that may fail, and answers. */
  async #answer(bytes: Buffer): Promise<void> {
    const [call, context] = [this.#call, this.#context];
    if (!call || !context) return;
    this.#running = true;
    let encoded: Buffer;
    try {
      const message = await call.run(decode(call.rpc, bytes), context);
      encoded = asBuffer(encodeAnswer(call.rpc.method.output, message));
      call.complete();
    } catch (error) {
      return this.#refuse(error);
    }
    this.#end();
    const grpc = this.#grpc;
    grpc.sendMetadata(context.header());
    const trailer = context.trailer();
    grpc.sendMessage(encoded, () => grpc.sendStatus(trailer ? { ...OK, metadata: trailer } : OK));
  }

  #refuse(error: unknown): void {
    const [call, context] = [this.#call, this.#context];
    if (!call || !context) return;
    this.#end();
    const refusal = call.refuse(error);
    context.abort(refusal);
    this.#grpc.sendStatus(toStatus(refusal, context.header()));
  }

  /** Lets go of everything: the library keeps what listens to a call for long after its end. */
  #end(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    this.#call = undefined;
    this.#context = undefined;
    this.#bytes = undefined;
  }
}
