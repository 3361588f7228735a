import { constants, type IncomingHttpHeaders, type ServerHttp2Stream } from "node:http2";
import { promisify } from "node:util";
import { gunzip, inflate } from "node:zlib";
import { fromBinary, type Message } from "@bufbuild/protobuf";
import { DomainError } from "../error.ts";
import type { Call, Rpc } from "./call.ts";
import { DEFAULT_DEADLINE_MS, gone, MAX_REQUEST_BYTES } from "./door.ts";
import { GrpcContext } from "./grpc-context.ts";
import { statusHeaders } from "./grpc-status.ts";
import { encodeAnswer } from "./handler.ts";
import type { Pipeline } from "./pipeline.ts";

/** Whether it is compressed, and how many bytes follow. */
const HEAD = 5;
/** How long an answer may wait to be read, and a caller who was refused may go on sending, in milliseconds. */
const LINGER = 60_000;
/** A request that comes in more pieces is put together meanwhile: small ones take more memory than what is in them. */
const MAX_PIECES = 64;
/** The longest that a timer takes, in milliseconds. */
const LONGEST_TIMER = 2 ** 31 - 1;

const TIMEOUT = /^(\d{1,8})([HMSmun])$/;
const unitMs: Readonly<Record<string, number>> = { H: 3_600_000, M: 60_000, S: 1_000, m: 1, u: 1e-3, n: 1e-6 };

const GRPC = /^application\/grpc(\+proto)?\s*(;|$)/;
const CONTENT_TYPE = "application/grpc+proto";
const OK = { "grpc-status": "0" };
const withTrailers = { waitForTrailers: true };

const decompressors: Readonly<
  Record<string, (bytes: Buffer, options: { maxOutputLength: number }) => Promise<Buffer>>
> = { gzip: promisify(gunzip), deflate: promisify(inflate) };

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

function tooLarge(): DomainError {
  return new DomainError("MESSAGE_TOO_LARGE", `a request may have ${MAX_REQUEST_BYTES} bytes`);
}

/** How long the caller waits, in milliseconds; undefined when it can't be read. */
function timeoutOf(header: string | string[] | undefined): number | undefined {
  if (header === undefined) return DEFAULT_DEADLINE_MS;
  const [, digits, unit = ""] = TIMEOUT.exec(String(header)) ?? [];
  return digits === undefined ? undefined : Math.min(Number(digits) * (unitMs[unit] ?? 1), LONGEST_TIMER);
}

/** @throws DomainError METHOD_NOT_SERVED, MESSAGE_TOO_LARGE, ARGUMENT_INVALID */
async function decompressed(bytes: Buffer, encoding: string): Promise<Buffer> {
  const decompress = decompressors[encoding];
  if (!decompress) throw new DomainError("METHOD_NOT_SERVED", `a request can't be compressed as "${encoding}"`);
  try {
    return await decompress(bytes, { maxOutputLength: MAX_REQUEST_BYTES });
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ERR_BUFFER_TOO_LARGE") throw tooLarge();
    throw new DomainError("ARGUMENT_INVALID", "the request can't be decompressed");
  }
}

function framed(message: Uint8Array): Buffer {
  const frame = Buffer.allocUnsafe(HEAD + message.length);
  frame[0] = 0;
  frame.writeUInt32BE(message.length, 1);
  frame.set(message, HEAD);
  return frame;
}

/**
 * A unary call, on its stream of the connection. The library serves connections and streams; for a unary call its
 * interceptors, queues and metadata cost more than all else that the door does.
 * https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md
 */
export class UnaryCall {
  readonly #stream: ServerHttp2Stream;
  readonly #rpc: Rpc;
  readonly #encoding: string;
  #chunks: Buffer[] = [];
  #size = 0;
  /** How many bytes the request has, its head included; until that has come, as many as the head. */
  #expected = HEAD;
  /** Until the stream is closed, in milliseconds: then the caller waits no longer. */
  #timeout = 0;
  #timer: NodeJS.Timeout | undefined;
  #running = false;
  /** Both while the call is open. */
  #call: Call | undefined;
  #context: GrpcContext | undefined;

  /** Takes the call over; nothing has to be done with it any more. */
  static serve(pipeline: Pipeline, rpc: Rpc, stream: ServerHttp2Stream, headers: IncomingHttpHeaders): void {
    // Each error is followed by a close.
    stream.on("error", () => {});
    if (GRPC.test(headers["content-type"] ?? "")) {
      new UnaryCall(pipeline, rpc, stream, headers).#begin(headers);
      return;
    }
    stream.respond({ ":status": constants.HTTP_STATUS_UNSUPPORTED_MEDIA_TYPE }, { endStream: true });
    stream.resume();
    const timer = setTimeout(() => stream.close(constants.NGHTTP2_CANCEL), LINGER);
    stream.on("close", () => clearTimeout(timer));
  }

  private constructor(pipeline: Pipeline, rpc: Rpc, stream: ServerHttp2Stream, headers: IncomingHttpHeaders) {
    this.#stream = stream;
    this.#rpc = rpc;
    this.#encoding = String(headers["grpc-encoding"] ?? "identity");
    this.#call = pipeline.begin(rpc, headers["x-request-id"] as string | undefined);
  }

  /** The request is read when it is known who calls, and has to be there within the deadline. */
  #begin(headers: IncomingHttpHeaders): void {
    const call = this.#call as Call;
    this.#stream.on("close", () => this.#closed());
    const timeout = timeoutOf(headers["grpc-timeout"]);
    this.#timeout = timeout ?? 0;
    this.#context = new GrpcContext(call, headers, Date.now() + this.#timeout);
    try {
      if (timeout === undefined) throw new DomainError("ARGUMENT_INVALID", "grpc-timeout can't be read");
      this.#timer = setTimeout(() => this.#expire(), timeout);
      const pending = call.authorize(headers.authorization);
      if (pending)
        pending.then(
          () => this.#read(),
          (error: unknown) => this.#refuse(error),
        );
      else this.#read();
    } catch (error) {
      this.#refuse(error);
    }
  }

  #read(): void {
    // One without a request may have ended before anybody has read.
    if (this.#stream.readableEnded) this.#taken();
    else this.#stream.on("data", (chunk: Buffer) => this.#take(chunk)).on("end", () => this.#taken());
  }

  #take(chunk: Buffer): void {
    if (!this.#call) return;
    const known = this.#size >= HEAD;
    this.#chunks.push(chunk);
    this.#size += chunk.length;
    if (this.#chunks.length > MAX_PIECES) this.#chunks = [Buffer.concat(this.#chunks)];
    if (!known && this.#size >= HEAD) {
      if (this.#chunks.length > 1) this.#chunks = [Buffer.concat(this.#chunks)];
      this.#expected += (this.#chunks[0] as Buffer).readUInt32BE(1);
    }
    if (this.#expected > HEAD + MAX_REQUEST_BYTES) this.#refuse(tooLarge());
    else if (this.#size >= HEAD && this.#size > this.#expected) this.#refuse(this.#miscounted("a second"));
  }

  #taken(): void {
    // A stream that was reset ends, too, before it is closed.
    if (!this.#call || this.#stream.closed) return;
    if (this.#size < this.#expected) this.#refuse(this.#miscounted("no"));
    else void this.#answer(this.#chunks.length === 1 ? (this.#chunks[0] as Buffer) : Buffer.concat(this.#chunks));
  }

  /** The caller has gone, or has its answer. */
  #closed(): void {
    if (this.#call && this.#context) leave(this.#call, this.#context, gone(this.#context.timeoutMs()));
    clearTimeout(this.#timer);
    if (!this.#running) this.#end();
    // The engine frees a closed stream only with the old generation: what its listeners hold would live as long.
    this.#stream.removeAllListeners("data").removeAllListeners("end");
  }

  #expire(): void {
    this.#timer = undefined;
    if (!this.#call) {
      this.#stream.close(constants.NGHTTP2_CANCEL);
      return;
    }
    const late = new DomainError("DEADLINE_EXCEEDED", "the deadline has passed");
    if (this.#running && this.#context) leave(this.#call, this.#context, late);
    else this.#refuse(late);
  }

  /** As gRPC has it for another number of requests than one. */
  #miscounted(many: "no" | "a second"): DomainError {
    return new DomainError("METHOD_NOT_SERVED", `there is ${many} request for ${this.#rpc.name}, which takes one`);
  }

  /** Does everything that may fail, and answers. */
  async #answer(bytes: Buffer): Promise<void> {
    const [call, context] = [this.#call, this.#context];
    if (!call || !context) return;
    this.#running = true;
    let frame: Buffer;
    try {
      const request = bytes.subarray(HEAD);
      const plain = bytes[0] === 0 || this.#encoding === "identity";
      const message = decode(call.rpc, plain ? request : await decompressed(request, this.#encoding));
      frame = framed(encodeAnswer(call.rpc.method.output, await call.run(message, context)));
      call.complete();
    } catch (error) {
      return this.#refuse(error);
    }
    this.#end();
    const stream = this.#stream;
    if (stream.destroyed || stream.closed) return;
    stream.respond({ ":status": 200, "content-type": CONTENT_TYPE, ...context.header() }, withTrailers);
    stream.once("wantTrailers", () => stream.sendTrailers({ ...OK, ...context.trailer() }));
    stream.end(frame);
    this.#linger();
  }

  #refuse(error: unknown): void {
    const [call, context] = [this.#call, this.#context];
    if (!call || !context) return;
    this.#end();
    const refusal = call.refuse(error);
    context.abort(refusal);
    const stream = this.#stream;
    if (stream.destroyed || stream.closed) return;
    const headers = { ":status": 200, "content-type": CONTENT_TYPE, ...context.header(), ...statusHeaders(refusal) };
    stream.respond(headers, { endStream: true });
    // What is still on its way is not kept.
    stream.resume();
    this.#linger();
  }

  /** A stream that the caller leaves open is ended at its deadline, or before: what was not read would be kept for ever. */
  #linger(): void {
    if (this.#timer && this.#timeout <= LINGER) return;
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#expire(), LINGER);
  }

  /** Lets go of everything: what listens to a stream lives for long after its end. */
  #end(): void {
    this.#call = undefined;
    this.#context = undefined;
    this.#chunks = [];
  }
}
