import type { Logger } from "pino";
import type { DomainError } from "../error.ts";
import type { Verifier } from "./auth.ts";
import { type ConnectDoorOptions, openConnectDoor } from "./connect-door.ts";
import { FLUSH_MS, within } from "./door.ts";
import { openGrpcDoor } from "./grpc-door.ts";
import { Pipeline, type Route } from "./pipeline.ts";
import type { Webhooks } from "./webhook.ts";

export { route } from "./pipeline.ts";

export type ServeOptions = Readonly<{
  host: string;
  /** 0 picks a free one. */
  grpcPort: number;
  httpPort: number;
  corsOrigins: ConnectDoorOptions["corsOrigins"];
  routes: readonly Route[];
  /** What other services may call by plain HTTP. */
  webhooks?: Webhooks | undefined;
  verifier: Verifier;
  log: Logger;
  /** The refusal of writes that come now, while too many wait. */
  overload?: () => DomainError | undefined;
  ready: ConnectDoorOptions["ready"];
}>;

export type Served = Readonly<{
  grpcPort: number;
  httpPort: number;
  /**
   * Refuses new calls, ends open streams, lets unary calls finish for `graceMs` milliseconds, refuses those left, and
   * closes all sockets, when their callers have heard of it or what is left of the grace is over. Calling it again gives the same promise.
   */
  stop(graceMs: number): Promise<void>;
}>;

/**
 * Opens both doors on the services given.
 * @throws Error with one clear line when a port can't be had (GRPC_PORT, HTTP_PORT) or an RPC has no access rule; nothing
 *   is left listening then.
 */
export async function serve(options: ServeOptions): Promise<Served> {
  const { host, grpcPort, httpPort: port, webhooks = new Map(), corsOrigins, ready, log } = options;
  const pipeline = new Pipeline(options.routes, options.verifier, log, options.overload);
  const grpc = await openGrpcDoor(pipeline, host, grpcPort);
  const door = { host, port, corsOrigins, webhooks, ready, log };
  const http = await openConnectDoor(pipeline, door).catch(async (error: unknown) => {
    await grpc.close(0);
    throw error;
  });
  const doors = [grpc, http];

  async function stop(graceMs: number): Promise<void> {
    const graceUntil = performance.now() + graceMs;
    for (const door of doors) door.announceStop();
    await within(pipeline.stop(), graceMs);
    pipeline.abort();
    const leaveMs = Math.max(graceUntil - performance.now(), FLUSH_MS);
    await Promise.all(doors.map((door) => door.close(leaveMs)));
  }
  let stopped: Promise<void> | undefined;
  return {
    grpcPort: grpc.port,
    httpPort: http.port,
    stop: (graceMs) => {
      stopped ??= stop(graceMs);
      return stopped;
    },
  };
}
