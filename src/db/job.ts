import { setTimeout as delay } from "node:timers/promises";

/** Work that goes on in the background until it is stopped. */
export interface Job {
  /** Resolves when the run at hand has ended. */
  stop(): Promise<void>;
}

/** Hears how a job fares: once when it begins to fail, however often it is tried, and once when it works again. */
export type JobObserver = Readonly<{ failed(error: unknown): void; recovered(): void }>;

/** The longest pause between two attempts of work that fails, in milliseconds, unless its interval is longer. */
const LONGEST_PAUSE = 5_000;

/**
 * Runs `work` again and again: at once while it says that there is more to do, else after `interval` milliseconds. Work that
 * fails is tried again after twice as long, and so on up to LONGEST_PAUSE. `signal` fires when the job is to stop.
 */
export function every(interval: number, work: (signal: AbortSignal) => Promise<boolean>, observer: JobObserver): Job {
  const stopping = new AbortController();
  const { signal } = stopping;
  const loop = async () => {
    let failures = 0;
    while (!signal.aborted) {
      let more = false;
      try {
        more = await work(signal);
        if (failures > 0 && !signal.aborted) observer.recovered();
        failures = 0;
      } catch (error) {
        if (failures === 0) observer.failed(error);
        failures += 1;
      }
      const pause = failures > 0 ? Math.max(interval, Math.min(interval * 2 ** failures, LONGEST_PAUSE)) : interval;
      if (!more) await delay(pause, undefined, { signal }).catch(() => {});
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
