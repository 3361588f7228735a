/** A till for tests: orders that are paid through a gateway whose books can be read, on a clock of its own. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Pool } from "pg";
import { afterAll, expect } from "vitest";
import { Orders } from "../../src/order/order.service.ts";
import { Payment } from "../../src/payment/payment.entity.ts";
import { SandboxGateway } from "../../src/payment/sandbox.ts";
import { openDatabase, rankingCaughtUp } from "../exact/audit.ts";
import { callOf, newShop, ORDER_TTL, openReplica, type Replica } from "../exact/verbs.ts";
import { createDatabase } from "../support/database.ts";
import { broken } from "../support/invariants.ts";
import { type Death, Process } from "./mortal.ts";

const MINUTE = 60_000;
export const PRICE = 700n;
/** What each buyer has in the wallet. */
export const MONEY = 100_000n;
const STOCK = 100_000;
const UNSETTLED = `
  select (select count(*) from payment where state = 'PENDING')
       + (select count(*) from gateway_refund where state = 'PENDING') as open`;

export type Target = Readonly<{ userId: string; orderId: string }>;

export class Till {
  readonly replica: Replica;
  readonly database: Pool;
  readonly gateway: SandboxGateway;
  /** Of the gateway's books. */
  readonly directory: string;
  readonly userId: string;
  readonly variantId: string;
  readonly #clock: { now: number };

  private constructor(
    clock: { now: number },
    parts: Pick<Till, "replica" | "database" | "gateway" | "directory" | "userId" | "variantId">,
  ) {
    this.#clock = clock;
    this.replica = parts.replica;
    this.database = parts.database;
    this.gateway = parts.gateway;
    this.directory = parts.directory;
    this.userId = parts.userId;
    this.variantId = parts.variantId;
  }

  static async open(): Promise<Till> {
    const directory = mkdtempSync(join(tmpdir(), "doorbuster-till-"));
    afterAll(() => rmSync(directory, { recursive: true, force: true }));
    const url = await createDatabase();
    const clock = { now: Date.now() };
    const opened = await openReplica(url, { clock: () => new Date(clock.now) });
    const replica = { ...opened, orders: new Orders(opened.db, ORDER_TTL, "sandbox") };
    const { userId, variantIds } = await newShop(replica, MONEY, [{ price: PRICE, stock: STOCK }]);
    const gateway = new SandboxGateway(directory);
    const [variantId = ""] = variantIds;
    return new Till(clock, { replica, database: openDatabase(url), gateway, directory, userId, variantId });
  }

  /** A process on this database and gateway, which may die. */
  process(death?: Death): Process {
    return new Process(this.replica.db, this.gateway, death);
  }

  pass(ms: number): void {
    this.#clock.now += ms;
  }

  async place(quantity: number): Promise<Target> {
    const purchase = { userId: this.userId, lines: [{ variantId: this.variantId, quantity }], fromCart: false };
    const wanted = { ...purchase, issuedCouponId: undefined, expectedTotal: undefined };
    const { order } = await this.replica.orders.place(callOf(), wanted, undefined);
    return { userId: this.userId, orderId: order.id };
  }

  stateOf({ userId, orderId }: Target): Promise<string> {
    return this.replica.orders.get(userId, orderId).then(({ order }) => order.state);
  }

  paymentsOf({ orderId }: Target): Promise<readonly Payment[]> {
    return this.replica.db.list(Payment, { orderId });
  }

  /** Lets the reconciler of a healthy process do its work, however long that takes by the clock, until nothing is open. */
  async settle(): Promise<void> {
    const { external } = this.process();
    const never = new AbortController().signal;
    for (let turn = 0; turn < 20; turn += 1) {
      const { rows } = await this.database.query(UNSETTLED);
      if (Number(rows[0].open) === 0) return;
      this.pass(6 * MINUTE);
      while (await external.reconcile(100, never));
    }
    expect.fail("payments stay open");
  }

  /** Expects that every invariant holds, and that the gateway holds exactly the money that the orders say. */
  async expectExact(): Promise<void> {
    await rankingCaughtUp(this.database, () => this.replica.ranking.project());
    expect(await broken(this.database, { [this.variantId]: STOCK })).toEqual([]);
    const { rows } = await this.database.query(
      `select id::text, case state when 'COMPLETED' then amount - refunded_amount else 0 end::text as held
         from payment where method = 'EXTERNAL'`,
    );
    const held = new Map<string, bigint>();
    for (const { kind, key, amount, approved } of await this.gateway.entries()) {
      const moved = approved ? BigInt(amount) * (kind === "charge" ? 1n : -1n) : 0n;
      held.set(key, (held.get(key) ?? 0n) + moved);
    }
    const free = rows.filter(({ id }) => !held.has(id)).map(({ id }) => [id, "0"]);
    const books = new Map([...free, ...[...held].map(([id, amount]) => [id, String(amount)])] as [string, string][]);
    expect(books).toEqual(new Map(rows.map(({ id, held: amount }) => [id, amount])));
  }
}
