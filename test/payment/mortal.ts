/** Processes that die at a chosen moment, as seen from outside: what they were about to do next never happens. */
import type { Database } from "../../src/db/database.ts";
import { External } from "../../src/payment/external.ts";
import type { PaymentGateway } from "../../src/payment/gateway.ts";
import { Payments } from "../../src/payment/payment.service.ts";

/** Where a process dies: at the `step`-th thing that it waits for, counted from 0; before that is done, or right after. */
export type Death = Readonly<{ step: number; when: "before" | "after" }>;

/** How long the gateway may take, in milliseconds: here it answers at once, whatever it says. */
const TIMEOUT_MS = 10_000;
const WAITED_FOR = ["write", "apply", "maintain", "find"] as const;

export class Process {
  /** What it has waited for, or was about to, in order. */
  readonly steps: string[] = [];
  readonly external: External;
  readonly payments: Payments;
  readonly #death: Death | undefined;
  readonly #end = Promise.withResolvers<"dead">();
  #dead = false;

  constructor(db: Database, gateway: PaymentGateway, death?: Death) {
    this.#death = death;
    const mortalDb = this.#wrap(db, WAITED_FOR);
    const mortalGateway = this.#wrap(gateway, ["charge", "retrieve", "refund"]);
    this.external = new External(mortalDb, {
      gateway: mortalGateway,
      name: "sandbox",
      currency: "KRW",
      timeoutMs: TIMEOUT_MS,
    });
    this.payments = new Payments(mortalDb, this.external);
  }

  /** What comes of `work`: its result, or `dead`. */
  live<T>(work: (process: this) => Promise<T>): Promise<T | "dead"> {
    return Promise.race([work(this), this.#end.promise]);
  }

  #wrap<T extends object>(real: T, names: readonly string[]): T {
    return new Proxy(real, {
      get: (target, name) => {
        const method = Reflect.get(target, name);
        if (typeof method !== "function") return method;
        const call = (...args: unknown[]) => Reflect.apply(method, target, args);
        return names.includes(String(name))
          ? (...args: unknown[]) => this.#step(String(name), () => call(...args))
          : call;
      },
    });
  }

  async #step<T>(name: string, work: () => Promise<T>): Promise<T> {
    if (this.#dead) return new Promise<never>(() => {});
    const dies = this.steps.push(name) - 1 === this.#death?.step;
    if (dies && this.#death?.when === "before") return this.#die();
    const result = await work().catch((error) => {
      if (dies) return this.#die();
      throw error;
    });
    return dies || this.#dead ? this.#die() : result;
  }

  #die(): Promise<never> {
    this.#dead = true;
    this.#end.resolve("dead");
    return new Promise<never>(() => {});
  }
}
