import type { AddressInfo, Server } from "node:net";
import { DomainError } from "../error.ts";

/** The largest request that either door reads, in bytes. */
export const MAX_REQUEST_BYTES = 1024 * 1024;

/** How long a unary call may take when the caller does not say. */
export const DEFAULT_DEADLINE_MS = 30_000;

/** Of a connection that has been quiet for so long, in milliseconds, it is found out whether the caller is still there. */
export const KEEPALIVE_MS = 60_000;

/** How long callers may take at least, in milliseconds, to read what is left and to leave, once all calls have ended. */
export const FLUSH_MS = 1_000;

/** One of the two ways in, while it is open. */
export type Door = Readonly<{
  port: number;
  /** Tells those who watch that the server is about to stop. New calls are still answered, with a refusal. */
  announceStop(): void;
  /** Closes the port, lets callers leave for `leaveMs` milliseconds, and then closes all sockets. */
  close(leaveMs: number): Promise<void>;
}>;

/** What it means that a caller has gone: at its deadline it hangs up by itself, often a little before our own timer. */
export function gone(leftMs: number | undefined): DomainError {
  return leftMs !== undefined && leftMs < 50
    ? new DomainError("DEADLINE_EXCEEDED", "the deadline has passed")
    : new DomainError("CANCELLED", "the caller has gone");
}

/** Waits for a promise, but not longer than `ms`. Answers whether it was in time. */
export async function within(promise: Promise<unknown>, ms: number): Promise<boolean> {
  const { promise: late, resolve } = Promise.withResolvers<false>();
  const timer = setTimeout(() => resolve(false), ms);
  try {
    return await Promise.race([promise.then(() => true as const), late]);
  } finally {
    clearTimeout(timer);
  }
}

function explained(error: NodeJS.ErrnoException, setting: string, host: string, port: number): Error {
  if (error.code === "EADDRINUSE") {
    return new Error(`${setting}: port ${port} on ${host} is in use; stop what uses it or choose another`);
  }
  return new Error(`${setting}: can't listen on port ${port} of ${host}: ${error.message}`);
}

/** Opens a port (0: a free one) and answers its number. @throws Error with one line that names the setting. */
export function listen(server: Server, setting: string, host: string, port: number): Promise<number> {
  return new Promise((resolve, reject) => {
    const failed = (error: Error) => reject(explained(error, setting, host, port));
    server.once("error", failed);
    server.listen(port, host, () => {
      server.off("error", failed);
      resolve((server.address() as AddressInfo).port);
    });
  });
}
