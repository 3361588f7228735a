import { setTimeout as delay } from "node:timers/promises";

/** Work that goes on in the background until it is stopped. */
export interface Job {
  /** Resolves when the run at hand has ended. */
  stop(): Promise<void>;
}

/**
 * Runs `work` again and again: at once while it says that there is more to do, else after `interval` milliseconds. A
 * failure is reported and tried again at the next turn.
 */
export function every(interval: number, work: () => Promise<boolean>, onError: (error: unknown) => void): Job {
  const stopping = new AbortController();
  const loop = async () => {
    while (!stopping.signal.aborted) {
      const more = await work().catch((error: unknown) => {
        onError(error);
        return false;
      });
      if (!more) await delay(interval, undefined, { signal: stopping.signal }).catch(() => {});
    }
  };
  const running = loop();
  return {
    async stop() {
      stopping.abort();
      await running;
    },
  };
}
