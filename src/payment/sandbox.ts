/** A payment gateway for development: no money moves, and the token says what it answers. */
import { randomUUIDv7 } from "node:crypto";
import { link, mkdir, readdir, readFile, unlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import type { Charge, GatewayAnswer, PaymentGateway, RefundAnswer } from "./gateway.ts";

/** How long the token `late` keeps its caller waiting, in milliseconds. */
const LATE_MS = 3_000;

/** One entry of the books: a charge, or a refund of the charge `key`, each by an `id`. Amounts are decimal strings. */
export type SandboxEntry = Readonly<{
  kind: "charge" | "refund";
  id: string;
  key: string;
  amount: string;
  approved: boolean;
  /** Of a charge whose money is never given back. */
  final?: boolean;
  reference: string;
}>;

/**
 * By its token a charge is approved (any other word), refused (`decline`), never answered and never made (`hang`), made and
 * never answered (`hang-approved`), approved after three seconds (`late`), fails with a connection error before it is made
 * (`unreachable`) or after (`reset`), or is approved and never given back (`no-refund`). The books are files in `directory`, a
 * folder for each charge: they survive a restart and a crash, and processes that share the directory share them.
 */
export class SandboxGateway implements PaymentGateway {
  readonly #directory: string;

  constructor(directory: string) {
    this.#directory = directory;
  }

  async charge({ key, amount, token }: Charge, signal: AbortSignal): Promise<GatewayAnswer> {
    if (token === "hang") return hang(signal);
    if (token === "unreachable") throw new Error("the sandbox can't be reached");
    if (token === "late") await delay(LATE_MS);
    const entry = await this.#charge(key, amount, token !== "decline", token === "no-refund");
    if (token === "hang-approved") return hang(signal);
    if (token === "reset") throw new Error("the sandbox has dropped the connection");
    return answerOf(entry);
  }

  async retrieve(key: string): Promise<GatewayAnswer> {
    return answerOf(await this.#charge(key, 0n, false));
  }

  async refund({ refundKey, key, amount }: { refundKey: string; key: string; amount: bigint }): Promise<RefundAnswer> {
    const name = `refund-${refundKey}.json`;
    const entries = (await this.#entriesOf(key)).filter(({ approved }) => approved);
    const made = entries.find(({ id }) => id === refundKey);
    if (made) return { outcome: "refunded", reference: made.reference };
    if (entries.some(({ final }) => final)) return { outcome: "refused", code: "refund_not_allowed" };
    const held = entries.reduce((sum, entry) => sum + BigInt(entry.amount) * (entry.kind === "charge" ? 1n : -1n), 0n);
    if (amount > held) return { outcome: "refused", code: "no_such_money" };
    const entry = { kind: "refund", id: refundKey, key, amount: String(amount), approved: true } as const;
    return { outcome: "refunded", reference: (await this.#enter(name, entry)).reference };
  }

  /** Everything in the books, in no order. */
  async entries(): Promise<SandboxEntry[]> {
    await mkdir(this.#directory, { recursive: true });
    const all: SandboxEntry[] = [];
    for (const key of await readdir(this.#directory)) all.push(...(await this.#entriesOf(key)));
    return all;
  }

  #charge(key: string, amount: bigint, approved: boolean, final = false): Promise<SandboxEntry> {
    return this.#enter("charge.json", { kind: "charge", id: key, key, amount: String(amount), approved, final });
  }

  async #entriesOf(key: string): Promise<SandboxEntry[]> {
    const names = await readdir(join(this.#directory, key)).catch(() => []);
    return Promise.all(names.filter((name) => name.endsWith(".json")).map((name) => this.#read(key, name)));
  }

  /** The entry of that name: the new one, or the one that was there first. */
  async #enter(name: string, entry: Omit<SandboxEntry, "reference">): Promise<SandboxEntry> {
    const directory = join(this.#directory, entry.key);
    await mkdir(directory, { recursive: true });
    const draft = join(directory, `${randomUUIDv7()}.draft`);
    await writeFile(draft, JSON.stringify({ ...entry, reference: `sandbox_${randomUUIDv7()}` }), { flush: true });
    try {
      // A link appears as a whole or not at all, and never in the place of another: whoever is second finds the first.
      await link(draft, join(directory, name));
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "EEXIST") throw error;
    } finally {
      await unlink(draft);
    }
    return this.#read(entry.key, name);
  }

  async #read(key: string, name: string): Promise<SandboxEntry> {
    return JSON.parse(await readFile(join(this.#directory, key, name), "utf8"));
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
