import type { EventEmitter } from "node:events";
import { fromBinary, type Message } from "@bufbuild/protobuf";
import type { Metadata } from "@grpc/grpc-js";
import { DomainError } from "../error.ts";
import type { Call, Rpc } from "./call.ts";
import { DEFAULT_DEADLINE_MS, gone } from "./door.ts";
import { GrpcContext } from "./grpc-context.ts";
import { asBuffer, type RawCall, toStatus, unimplemented } from "./grpc-status.ts";
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
  #metadata: Metadata | undefined;
  #bytes: Buffer | undefined;
  /** Both while the call runs. */
  #call: Call | undefined;
  #context: GrpcContext | undefined;

  constructor(pipeline: Pipeline, rpc: Rpc, grpc: RawCall) {
    this.#pipeline = pipeline;
    this.#rpc = rpc;
    this.#grpc = grpc;
  }

  onReceiveMetadata(metadata: Metadata): void {
    this.#metadata = metadata;
    this.#grpc.startRead();
  }

  onReceiveMessage(bytes: Buffer): void {
    if (this.#bytes) {
      this.#refuse("a second");
    } else {
      this.#bytes = bytes;
      this.#grpc.startRead();
    }
  }

  onReceiveHalfClose(): void {
    if (this.#bytes && this.#metadata) this.#begin(this.#metadata, this.#bytes);
    else this.#refuse("no");
  }

  /** In the words of the library, which would do the same. */
  #refuse(many: "no" | "a second"): void {
    const details = `Received ${many} request message for server streaming method /${this.#rpc.name}`;
    this.#grpc.sendStatus(unimplemented(details));
  }

  #begin(metadata: Metadata, bytes: Buffer): void {
    const call = this.#pipeline.begin(this.#rpc, metadata.get("x-request-id")[0] as string | undefined);
    const asked = Number(this.#grpc.getDeadline());
    const byDefault = asked === Number.POSITIVE_INFINITY;
    const context = new GrpcContext(call, metadata, byDefault ? Date.now() + DEFAULT_DEADLINE_MS : asked);
    this.#call = call;
    this.#context = context;
    const timer = byDefault ? setTimeout(() => this.onCancel(), DEFAULT_DEADLINE_MS) : undefined;
    void this.#answer(call, context, metadata, bytes, timer);
  }

  /** The caller has gone, or the deadline that it set has passed. It is called after each answer too. */
  onCancel(): void {
    if (this.#call && this.#context) leave(this.#call, this.#context, gone(this.#context.timeoutMs()));
    // The engine frees a closed stream only with the old generation: what its listeners hold would live as long.
    const { stream } = this.#grpc as unknown as { stream: EventEmitter };
    stream.removeAllListeners("data").removeAllListeners("end");
  }

  /** Does everything that may fail, and answers. */
  async #answer(
    call: Call,
    context: GrpcContext,
    metadata: Metadata,
    bytes: Buffer,
    timer: NodeJS.Timeout | undefined,
  ): Promise<void> {
    const grpc = this.#grpc;
    let encoded: Buffer;
    try {
      const pending = call.authorize(metadata.get("authorization")[0] as string | undefined);
      if (pending) await pending;
      const message = await call.run(decode(call.rpc, bytes), context);
      encoded = asBuffer(encodeAnswer(call.rpc.method.output, message));
      call.complete();
    } catch (error) {
      this.#end(timer);
      const refusal = call.refuse(error);
      context.abort(refusal);
      return grpc.sendStatus(toStatus(refusal, context.header()));
    }
    this.#end(timer);
    grpc.sendMetadata(context.header());
    const trailer = context.trailer();
    grpc.sendMessage(encoded, () => grpc.sendStatus(trailer ? { ...OK, metadata: trailer } : OK));
  }

  /** Lets go of everything: the library keeps what listens to a call for long after its end. */
  #end(timer: NodeJS.Timeout | undefined): void {
    clearTimeout(timer);
    this.#call = undefined;
    this.#context = undefined;
    this.#metadata = undefined;
    this.#bytes = undefined;
  }
}
