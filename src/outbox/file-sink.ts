import { mkdir, open } from "node:fs/promises";
import { dirname } from "node:path";
import { toCloudEvent } from "./cloud-event.ts";
import type { Delivery, Sink } from "./sink.ts";

const NEWLINE = "\n".charCodeAt(0);

/**
 * Appends events to a file as JSON lines, each a CloudEvent, and answers when they are on the disk. The file is opened anew
 * for each batch, so that it may be moved away at any time.
 */
export function fileSink(path: string): Sink {
  async function append(text: string, signal: AbortSignal): Promise<void> {
    await mkdir(dirname(path), { recursive: true });
    const file = await open(path, "a+");
    try {
      const { size } = await file.stat();
      const last = Buffer.alloc(1);
      if (size > 0) await file.read(last, 0, 1, size - 1);
      // The last moment to leave it to somebody else: from here on it is written as a whole.
      signal.throwIfAborted();
      // A line that a crash has cut off must not spoil the next one.
      await file.appendFile(size > 0 && last[0] !== NEWLINE ? `\n${text}` : text);
      await file.datasync();
    } finally {
      await file.close();
    }
  }
  return {
    name: path,
    async deliver(events, signal) {
      try {
        await append(events.map((event) => `${toCloudEvent(event)}\n`).join(""), signal);
        return events.map(() => "delivered");
      } catch (error) {
        // Some of them may have got through: they come again.
        const failure = { kind: "unreachable", message: (error as Error).message } as const;
        return events.map((_, index): Delivery => (index === 0 ? failure : "untried"));
      }
    },
    close: async () => {},
  };
}
