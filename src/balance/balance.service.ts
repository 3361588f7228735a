import { touch, type Write } from "../db/command.ts";
import type { Database } from "../db/database.ts";
import { bySeq, type Page, type PageRequest, pageOf } from "../db/page.ts";
import { DomainError } from "../error.ts";
import { Event } from "../outbox/event.entity.ts";
import { LedgerEntry, Wallet } from "./balance.entity.ts";

/** In minor units. */
export type BalanceLimits = Readonly<{ maxCharge: bigint; maxBalance: bigint }>;

/** Wallets and their ledgers. */
export class Balances {
  readonly #db: Database;
  readonly #limits: BalanceLimits;

  constructor(db: Database, limits: BalanceLimits) {
    this.#db = db;
    this.#limits = limits;
  }

  /** @throws DomainError USER_NOT_FOUND */
  async get(userId: string): Promise<Wallet> {
    const wallet = await this.#db.find(Wallet, { userId });
    if (!wallet) throw Wallet.notFound({ userId });
    return wallet;
  }

  /**
   * Puts `amount` minor units into a wallet.
   *
   * @throws DomainError ARGUMENT_INVALID above the largest charge, USER_NOT_FOUND, BALANCE_LIMIT_EXCEEDED
   */
  async charge(
    call: Write,
    input: { userId: string; amount: bigint; reference: string },
  ): Promise<{ wallet: Wallet; entry: LedgerEntry }> {
    const { userId, amount, reference } = input;
    this.#assertChargeable(amount);
    return this.#db.write(call, {
      touches: [touch(Wallet, { userId })],
      decide: (tx) => {
        const wallet = tx.get(Wallet, { userId });
        const entry = wallet.charge(amount, this.#limits.maxBalance, reference || call.requestId, tx.now);
        tx.add(entry);
        const facts = { user_id: userId, amount: String(amount), balance: String(wallet.balance) };
        tx.add(Event.of("balance.charged", userId, facts, tx.now));
        return { wallet, entry };
      },
    });
  }

  /** Newest first. @throws DomainError USER_NOT_FOUND, PAGE_TOKEN_INVALID */
  listEntries(userId: string, request: PageRequest): Promise<Page<LedgerEntry>> {
    return this.#db.read(async (em) => {
      const page = await pageOf(
        "ledger",
        request,
        bySeq,
        (entry: LedgerEntry) => String(entry.seq),
        (after, limit) =>
          em.find(
            LedgerEntry,
            { userId, ...(after && { seq: { $lt: BigInt(after) } }) },
            { limit, orderBy: { seq: "desc" } },
          ),
      );
      if (page.items.length === 0 && !(await em.findOne(Wallet, { userId }))) throw Wallet.notFound({ userId });
      return page;
    });
  }

  #assertChargeable(amount: bigint): void {
    const { maxCharge } = this.#limits;
    if (amount > maxCharge) {
      const violations = [{ field: "amount", description: `must be at most ${maxCharge}` }];
      throw new DomainError("ARGUMENT_INVALID", "the amount is more than one charge may be", {}, { violations });
    }
  }
}
