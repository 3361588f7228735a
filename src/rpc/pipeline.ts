import {
  create,
  type DescMethod,
  type DescMethodServerStreaming,
  type DescMethodUnary,
  type DescService,
} from "@bufbuild/protobuf";
import { createValidator, type Validator } from "@bufbuild/protovalidate";
import type { ConnectError, ServiceImpl } from "@connectrpc/connect";
import type { Logger } from "pino";
import type { DomainError } from "../error.ts";
import { accessRule, type Verifier } from "./auth.ts";
import { type Arrival, Call, type House, logLine, type Rpc, shuttingDown } from "./call.ts";
import { codeName, codeOf, toConnectError } from "./error-map.ts";
import { lowerCaseIds } from "./ids.ts";

/** A service of the contract and what implements it. */
export type Route = Readonly<{ service: DescService; impl: Readonly<Record<string, unknown>> }>;

/** Pairs a service with its implementation; the types of both are checked against each other. */
export function route<S extends DescService>(service: S, impl: ServiceImpl<S>): Route {
  return { service, impl: impl as Route["impl"] };
}

/** Characters of a path in the log that is no RPC's; the longest name of an RPC has less than half. */
const MAX_PATH = 128;

function served(method: DescMethod): method is DescMethodUnary | DescMethodServerStreaming {
  return method.methodKind === "unary" || method.methodKind === "server_streaming";
}

function toRpc({ impl }: Route, method: DescMethod, validator: Validator): Rpc {
  const name = `${method.parent.typeName}/${method.name}`;
  if (!served(method)) throw new Error(`${name}: streams from the caller are not served`);
  const handler = impl[method.localName];
  if (typeof handler !== "function") throw new Error(`${name} has no handler`);
  // Compiles the rules now: one that can't be compiled stops the start, and not every call.
  const trial = validator.validate(method.input, create(method.input));
  if (trial.kind === "error") throw new Error(`${name}: ${trial.error.message}`);
  const lowerCase = lowerCaseIds(method.input);
  const write = method.input.fields.some((field) => field.name === "request_id");
  return { method, name, write, access: accessRule(method), lowerCaseIds: lowerCase, impl: handler.bind(impl) };
}

/**
 * What every call goes through behind either door: access, validation, handler, error mapping, one log line. It is
 * composed once, from all services.
 */
export class Pipeline {
  readonly rpcs: readonly Rpc[];
  readonly services: readonly DescService[];
  readonly #house: House;

  /** @throws Error naming the RPC that has no access rule, no handler, or validation rules that don't compile. */
  constructor(
    routes: readonly Route[],
    verifier: Verifier,
    log: Logger,
    overload: House["overload"] = () => undefined,
  ) {
    const validator = createValidator();
    this.services = routes.map(({ service }) => service);
    this.rpcs = routes.flatMap((pair) => pair.service.methods.map((method) => toRpc(pair, method, validator)));
    this.#house = { verifier, validator, log, open: [], running: 0, stopping: false, overload, onIdle: undefined };
  }

  /** Whether new calls are turned away. */
  get stopping(): boolean {
    return this.#house.stopping;
  }

  /** A call has come in. It stays open until it is completed or refused. */
  begin(rpc: Rpc, requestId: string | null | undefined): Call {
    return new Call(this.#house, rpc, requestId);
  }

  /** Refuses what came in and never became a call: one log line like those of calls, and the error for the caller. */
  turnAway(arrival: Arrival, refusal: DomainError): ConnectError {
    const { reason } = refusal;
    // The path is the caller's own text.
    const line = logLine({ ...arrival, rpc: arrival.rpc.slice(0, MAX_PATH) }, codeName(codeOf(reason)));
    this.#house.log.info({ ...line, reason }, "call");
    return toConnectError(refusal, arrival.requestId);
  }

  /** From now on new calls are refused. Ends the open streams, and resolves when the unary calls have ended. */
  stop(): Promise<void> {
    this.#house.stopping = true;
    return new Promise((resolve) => {
      this.#house.onIdle = resolve;
      for (const call of [...this.#house.open]) {
        if (call.rpc.method.methodKind === "server_streaming") call.abandon(shuttingDown());
      }
      if (this.#house.running === 0) resolve();
    });
  }

  /** Refuses what is still running. */
  abort(): void {
    for (const call of [...this.#house.open]) call.abandon(shuttingDown());
  }
}
