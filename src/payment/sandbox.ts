/** A payment gateway for development: no money moves, and the token says what it answers. */
import { randomUUIDv7 } from "node:crypto";
import { link, mkdir, readdir, readFile, unlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import type { Charge, GatewayAnswer, PaymentGateway, RefundAnswer } from "./gateway.ts";

/** How long the token `late` keeps its caller waiting, in milliseconds. */
const LATE_MS = 3_000;

/** One entry of the books: a charge, by its key, or a refund of it. Amounts are decimal strings. */
export type SandboxEntry = Readonly<{
  kind: "charge" | "refund";
  key: string;
  amount: string;
  approved: boolean;
  reference: string;
}>;

/**
 * By its token a charge is approved (any other word), refused (`decline`), never answered and never made (`hang`), made and
 * never answered (`hang-approved`), approved after three seconds (`late`), or fails with a connection error after it was
 * made (`reset`). The books are files in `directory`, one an entry: they survive a restart and a crash, and processes that
 * share the directory share them.
 */
export class SandboxGateway implements PaymentGateway {
  readonly #directory: string;

  constructor(directory: string) {
    this.#directory = directory;
  }

  async charge({ key, amount, token }: Charge, signal: AbortSignal): Promise<GatewayAnswer> {
    if (token === "hang") return hang(signal);
    if (token === "late") await delay(LATE_MS);
    const entry = await this.#enter("charge", key, { key, amount: String(amount), approved: token !== "decline" });
    if (token === "hang-approved") return hang(signal);
    if (token === "reset") throw new Error("the sandbox has dropped the connection");
    return answerOf(entry);
  }

  async retrieve(key: string): Promise<GatewayAnswer> {
    return answerOf(await this.#enter("charge", key, { key, amount: "0", approved: false }));
  }

  async refund({ refundKey, key, amount }: { refundKey: string; key: string; amount: bigint }): Promise<RefundAnswer> {
    const entries = await this.entries();
    const charged = entries.find((entry) => entry.kind === "charge" && entry.key === key && entry.approved);
    if (!charged || amount > BigInt(charged.amount)) throw new Error("the sandbox holds no such money");
    const { reference } = await this.#enter("refund", refundKey, { key, amount: String(amount), approved: true });
    return { outcome: "refunded", reference };
  }

  /** Everything in the books, in no order. */
  async entries(): Promise<SandboxEntry[]> {
    await mkdir(this.#directory, { recursive: true });
    const names = (await readdir(this.#directory)).filter((name) => name.endsWith(".json"));
    return Promise.all(names.map((name) => this.#read(name)));
  }

  /** The entry under that key: the new one, or the one that was there first. */
  async #enter(
    kind: SandboxEntry["kind"],
    key: string,
    entry: Omit<SandboxEntry, "kind" | "reference">,
  ): Promise<SandboxEntry> {
    await mkdir(this.#directory, { recursive: true });
    const name = `${kind}-${key}.json`;
    const draft = join(this.#directory, `${randomUUIDv7()}.draft`);
    await writeFile(draft, JSON.stringify({ kind, ...entry, reference: `sandbox_${randomUUIDv7()}` }));
    try {
      // A link appears as a whole or not at all, and never in the place of another: whoever is second finds the first.
      await link(draft, join(this.#directory, name));
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "EEXIST") throw error;
    } finally {
      await unlink(draft);
    }
    return this.#read(name);
  }

  async #read(name: string): Promise<SandboxEntry> {
    return JSON.parse(await readFile(join(this.#directory, name), "utf8"));
  }
}

function answerOf({ approved, reference }: SandboxEntry): GatewayAnswer {
  return approved ? { outcome: "approved", reference } : { outcome: "declined", reference, code: "card_declined" };
}

/** Answers when nobody waits any more, and then only that it does not know. */
function hang(signal: AbortSignal): Promise<GatewayAnswer> {
  const { promise, resolve } = Promise.withResolvers<GatewayAnswer>();
  const end = () => resolve({ outcome: "unknown" });
  if (signal.aborted) end();
  else signal.addEventListener("abort", end, { once: true });
  return promise;
}
