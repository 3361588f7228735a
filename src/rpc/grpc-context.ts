import type { DescMethod, DescService } from "@bufbuild/protobuf";
import { type ContextValues, createContextValues, type HandlerContext } from "@connectrpc/connect";
import { type Call, callKey } from "./call.ts";

/** As HTTP/2 has them: binary ones are in base64. */
export type GrpcHeaders = Readonly<Record<string, string | number | readonly string[] | undefined>>;

function toHeaders(sent: GrpcHeaders): Headers {
  const headers = new Headers();
  for (const [name, value] of Object.entries(sent)) {
    if (name.startsWith(":") || value === undefined) continue;
    for (const one of [value].flat()) headers.append(name, String(one));
  }
  return headers;
}

/**
 * What a handler gets to know of a gRPC call. Everything that costs is made when it is asked for: most handlers look at
 * nothing of it.
 */
export class GrpcContext implements HandlerContext {
  readonly method: DescMethod;
  readonly requestMethod = "POST";
  readonly protocolName = "grpc";
  readonly #sent: GrpcHeaders;
  readonly #call: Call;
  readonly #deadlineMs: number;
  #controller: AbortController | undefined;
  #aborted: unknown;
  #requestHeader: Headers | undefined;
  #responseHeader: Headers | undefined;
  #responseTrailer: Headers | undefined;
  #values: ContextValues | undefined;

  /** `deadlineMs` is a time as Date.now() counts it, or Infinity. */
  constructor(call: Call, sent: GrpcHeaders, deadlineMs: number) {
    this.method = call.rpc.method;
    this.#call = call;
    this.#sent = sent;
    this.#deadlineMs = deadlineMs;
  }

  get service(): DescService {
    return this.method.parent;
  }

  get url(): string {
    return `http://${this.#sent[":authority"] ?? this.#sent.host ?? "localhost"}/${this.#call.rpc.name}`;
  }

  get signal(): AbortSignal {
    if (!this.#controller) {
      this.#controller = new AbortController();
      if (this.#aborted !== undefined) this.#controller.abort(this.#aborted);
    }
    return this.#controller.signal;
  }

  get requestHeader(): Headers {
    this.#requestHeader ??= toHeaders(this.#sent);
    return this.#requestHeader;
  }

  get responseHeader(): Headers {
    this.#responseHeader ??= new Headers();
    return this.#responseHeader;
  }

  get responseTrailer(): Headers {
    this.#responseTrailer ??= new Headers();
    return this.#responseTrailer;
  }

  get values(): ContextValues {
    this.#values ??= createContextValues().set(callKey, this.#call);
    return this.#values;
  }

  get timeoutMs(): () => number | undefined {
    const deadlineMs = this.#deadlineMs;
    return () => (deadlineMs === Number.POSITIVE_INFINITY ? undefined : deadlineMs - Date.now());
  }

  /** Tells the handler that nobody waits for its answer any more. */
  abort(reason: unknown): void {
    if (this.#aborted !== undefined) return;
    this.#aborted = reason;
    this.#controller?.abort(reason);
  }

  /** The headers of the answer: those of the handler, and the request id. */
  header(): Record<string, string> {
    const headers: Record<string, string> = { "x-request-id": this.#call.requestId };
    return this.#responseHeader ? Object.assign(headers, Object.fromEntries(this.#responseHeader)) : headers;
  }

  /** The trailers of the answer, if there are any. */
  trailer(): Record<string, string> | undefined {
    return this.#responseTrailer && Object.fromEntries(this.#responseTrailer);
  }
}
