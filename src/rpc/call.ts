import { randomUUIDv7 } from "node:crypto";
import {
  create,
  type DescMethodServerStreaming,
  type DescMethodUnary,
  isMessage,
  type Message,
  type MessageInitShape,
} from "@bufbuild/protobuf";
import { pathToString } from "@bufbuild/protobuf/reflect";
import type { Validator, Violation } from "@bufbuild/protovalidate";
import { type ConnectError, createContextKey, type HandlerContext } from "@connectrpc/connect";
import type { Logger } from "pino";
import { DomainError } from "../error.ts";
import { type AccessRule, type Caller, lacksUser, requireOwn, requireRole, type Verifier } from "./auth.ts";
import { codeName, codeOf, isMapped, refusalOf, toSharedError } from "./error-map.ts";

type Init = MessageInitShape<DescMethodUnary["output"]>;

/** One RPC as both doors serve it. */
export type Rpc = Readonly<{
  method: DescMethodUnary | DescMethodServerStreaming;
  /** `shop.v1.UserService/GetUser` */
  name: string;
  access: AccessRule;
  /** Whether it changes something, and so may have to wait for others. */
  write: boolean;
  /** Puts the ids of a request into the one spelling that is stored; undefined when it has none. */
  lowerCaseIds: ((request: Message) => void) | undefined;
  /** Answers a message, a promise of one, or an iterable of them, as the method says. */
  impl: (request: Message, context: HandlerContext) => unknown;
}>;

/** What all calls have in common. */
export type House = {
  readonly verifier: Verifier;
  readonly validator: Validator;
  readonly log: Logger;
  readonly open: Call[];
  /** How many of the open calls are unary: those that a stop waits for. */
  running: number;
  stopping: boolean;
  /** The refusal of writes that come now, while too many wait. */
  readonly overload: () => DomainError | undefined;
  /** Called when the last running call has ended. */
  onIdle: (() => void) | undefined;
};

/** Where a call is found from the context that its handler gets. */
export const callKey = createContextKey<Call | undefined>(undefined, { description: "call" });

/** Who makes the call that a handler serves. */
export function callerOf(context: HandlerContext): Caller {
  const caller = context.values.get(callKey)?.caller;
  if (!caller) throw new Error("a handler ran outside of the pipeline");
  return caller;
}

/** A refusal that sends the caller to another replica, or back here after a restart. */
export function shuttingDown(): DomainError {
  return new DomainError("SHUTTING_DOWN", "the server is shutting down", {}, { retryAfterMs: 1_000 });
}

/** Enough to find the mistake, and some 3 KB: many clients take trailers of 8 KB at the most. */
const MAX_VIOLATIONS = 25;

/** The rules quote what they forbid, the NUL character too; no terminal and no log gets that as it is. */
function printable(text: string): string {
  return text.replace(/\p{Cc}/gu, (char) => `\\u${char.charCodeAt(0).toString(16).padStart(4, "0")}`);
}

function argumentInvalid(violations: readonly Violation[]): DomainError {
  const fields = violations.slice(0, MAX_VIOLATIONS).map((violation) => ({
    field: pathToString(violation.field),
    description: printable(violation.message),
  }));
  const [first] = fields;
  const message = first?.field ? `${first.field}: ${first.description}` : (first?.description ?? "invalid request");
  return new DomainError("ARGUMENT_INVALID", message, {}, { violations: fields });
}

function isThenable<T>(work: T | PromiseLike<T>): work is PromiseLike<T> {
  return work instanceof Object && "then" in work;
}

const SANE_REQUEST_ID = /^[\w.:/+=-]{1,128}$/;

/** The id that a call has in the log and in its answer: from the header `x-request-id` when that is sane, else made here. */
export function requestIdOf(header: unknown): string {
  return typeof header === "string" && SANE_REQUEST_ID.test(header) ? header : randomUUIDv7();
}

/** What came in and may become a call of an RPC, or of none. */
export type Arrival = Readonly<{
  requestId: string;
  /** The path as it was sent, without its first slash. */
  rpc: string;
  /** As performance.now() counts. */
  beganMs: number;
}>;

/** The part that all log lines of calls share. */
export function logLine({ requestId, rpc, beganMs }: Arrival, code: string) {
  const durationMs = Math.round((performance.now() - beganMs) * 1_000) / 1_000;
  return { request_id: requestId, rpc, code, duration_ms: durationMs };
}

/**
 * One call on its way through the pipeline: access, validation, the handler, and exactly one ending with one log line.
 * The doors drive it; whatever goes wrong on the way they hand to `refuse`, and send what it returns.
 */
export class Call {
  readonly rpc: Rpc;
  readonly requestId: string;
  caller: Caller | undefined;
  /** Whether the request was read and accepted, and the handler has been started. */
  started = false;
  readonly #house: House;
  readonly #beganMs = performance.now();
  #ended = false;
  /** Its index among the open calls. */
  #place: number;
  #abandoned: unknown;
  #interrupt: ((reason: unknown) => void) | undefined;

  constructor(house: House, rpc: Rpc, requestId: string | null | undefined) {
    this.#house = house;
    this.rpc = rpc;
    this.requestId = requestIdOf(requestId);
    this.#place = house.open.push(this) - 1;
    if (rpc.method.methodKind === "unary") house.running++;
  }

  /**
   * Finds out who calls, and whether its role may. Needs no request, so that a stranger's is not read.
   * @throws DomainError SHUTTING_DOWN, OVERLOADED, TOKEN_MISSING, TOKEN_INVALID, ISSUER_UNAVAILABLE, ROLE_REQUIRED
   */
  authorize(authorization: string | undefined): undefined | Promise<undefined> {
    if (this.#house.stopping) throw shuttingDown();
    // Before anything is done for it: under an overload, refusing is most of the work.
    const overload = this.rpc.write && this.#house.overload();
    if (overload) throw overload;
    const caller = this.#house.verifier.verify(authorization);
    return caller instanceof Promise ? caller.then((known) => this.#admit(known)) : this.#admit(caller);
  }

  #admit(caller: Caller): undefined {
    this.caller = caller;
    requireRole(this.rpc.access, caller);
  }

  #check(request: Message): void {
    if (!this.caller) throw new Error("a call ran without having been authorized");
    this.rpc.lowerCaseIds?.(request);
    // A stranger's id is refused before anything is said of the rest; a missing one is for the contract's rules to name.
    const lacking = lacksUser(this.rpc.access, request);
    if (!lacking) requireOwn(this.rpc.access, this.caller, request);
    const result = this.#house.validator.validate(this.rpc.method.input, request);
    if (result.kind === "invalid") throw argumentInvalid(result.violations);
    if (result.kind === "error") throw result.error;
    if (lacking) requireOwn(this.rpc.access, this.caller, request);
    this.started = true;
  }

  /** Waits for work, but no longer than the caller does. */
  #unlessAbandoned<T>(work: T | PromiseLike<T>): T | Promise<T> {
    if (!isThenable(work) && this.#abandoned === undefined) return work;
    return new Promise((resolve, reject) => {
      Promise.resolve(work).then(resolve, reject);
      this.#interrupt = reject;
      if (this.#abandoned !== undefined) reject(this.#abandoned);
    });
  }

  #toMessage(answer: unknown): Message {
    const output = this.rpc.method.output;
    return isMessage(answer, output) ? answer : create(output, answer as Init);
  }

  /** Checks the request and runs the handler of a unary RPC; the door then says `complete` or `refuse`. */
  async run(request: Message, context: HandlerContext): Promise<Message> {
    // It was given up while it was still arriving.
    if (this.#abandoned !== undefined) throw this.#abandoned;
    this.#check(request);
    return this.#toMessage(await this.#unlessAbandoned(this.rpc.impl(request, context)));
  }

  /** Checks the request and runs the handler of a server stream, up to its end, which it records itself. */
  async *stream(request: Message, context: HandlerContext): AsyncGenerator<Message, void> {
    let answers: AsyncIterator<unknown> | undefined;
    try {
      // It was given up while it was being found out who calls.
      if (this.#abandoned !== undefined) throw this.#abandoned;
      this.#check(request);
      answers = (this.rpc.impl(request, context) as AsyncIterable<unknown>)[Symbol.asyncIterator]();
      for (;;) {
        const step = await this.#unlessAbandoned(answers.next());
        if (step.done) break;
        yield this.#toMessage(step.value);
      }
      this.complete();
    } catch (error) {
      throw this.refuse(error);
    } finally {
      if (!this.#ended) this.refuse(this.#abandoned ?? new DomainError("CANCELLED", "the caller has gone"));
      // Not awaited: a handler that hangs must not keep the call open.
      Promise.resolve(answers?.return?.()).catch(() => {});
    }
  }

  /**
   * Nobody waits for the answer any more: the handler's fate no longer matters, and a call that has not come that far ends
   * here. Does nothing after the end.
   */
  abandon(reason: unknown): void {
    if (this.#ended || this.#abandoned !== undefined) return;
    this.#abandoned = reason;
    this.#interrupt?.(reason);
    if (!this.started) this.refuse(reason);
  }

  /** Records that the call was answered. */
  complete(): void {
    if (!this.#end()) return;
    const { log } = this.#house;
    if (log.isLevelEnabled("info")) log.info(this.#line("OK"), "call");
  }

  /** Records that the call was refused, and makes the error that the caller gets. */
  refuse(error: unknown): ConnectError {
    if (isMapped(error)) return error;
    const refusal = refusalOf(error);
    const internal = refusal.reason === "INTERNAL";
    if ((this.#end() && this.#house.log.isLevelEnabled("info")) || internal) {
      const line = { ...this.#line(codeName(codeOf(refusal.reason))), reason: refusal.reason };
      this.#house.log[internal ? "error" : "info"](refusal.cause ? { ...line, err: refusal.cause } : line, "call");
    }
    return toSharedError(refusal, this.requestId);
  }

  #end(): boolean {
    if (this.#ended) return false;
    this.#ended = true;
    const last = this.#house.open.pop();
    if (last && last !== this) {
      this.#house.open[this.#place] = last;
      last.#place = this.#place;
    }
    if (this.rpc.method.methodKind === "unary" && --this.#house.running === 0) this.#house.onIdle?.();
    return true;
  }

  #line(code: string): Record<string, unknown> {
    const { requestId, rpc } = this;
    return { ...logLine({ requestId, rpc: rpc.name, beganMs: this.#beganMs }, code), caller: this.caller?.subject };
  }
}
