import type { Logger } from "pino";
import { within } from "./rpc/door.ts";

/** How long a part may take to stop, in milliseconds, unless it says otherwise. */
const PART_STOP = 1_000;

type Part = Readonly<{ name: string; stop: () => Promise<unknown>; limitMs: number }>;

/** What has been started so far, to be stopped in the opposite order: some parts at the same time. */
export class Started {
  readonly #parts: Part[][] = [];
  readonly #log: Logger;

  constructor(log: Logger) {
    this.#log = log;
  }

  add(name: string, stop: () => Promise<unknown>, limitMs = PART_STOP): void {
    this.#parts.push([{ name, stop, limitMs }]);
  }

  /** Of several that run beside each other, and are stopped so. */
  addBeside(name: string, stop: () => Promise<unknown>): void {
    this.#parts.at(-1)?.push({ name, stop, limitMs: PART_STOP });
  }

  /** A part that hangs or fails does not keep the others from stopping. Answers whether there was none. */
  async stop(): Promise<boolean> {
    let clean = true;
    for (let parts = this.#parts.pop(); parts; parts = this.#parts.pop()) {
      const stopped = await Promise.all(parts.map((part) => this.#stop(part)));
      clean &&= stopped.every(Boolean);
    }
    return clean;
  }

  async #stop({ name, stop, limitMs }: Part): Promise<boolean> {
    try {
      if (await within(stop(), limitMs)) return true;
      this.#log.error({ part: name, limitMs }, "this part did not stop in time");
    } catch (err) {
      this.#log.error({ part: name, err }, "this part failed to stop");
    }
    return false;
  }
}
