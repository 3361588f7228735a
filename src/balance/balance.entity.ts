import { defineEntity, p } from "@mikro-orm/core";
import { DomainError } from "../error.ts";

/** Why money moved. */
export const ledgerKinds = ["CHARGE", "PAYMENT", "REFUND"] as const;
export type LedgerKind = (typeof ledgerKinds)[number];

const entrySchema = defineEntity({
  name: "LedgerEntry",
  tableName: "ledger_entry",
  properties: {
    userId: p.uuid().primary(),
    seq: p.bigint().primary(),
    kind: p.enum(ledgerKinds),
    amount: p.bigint(),
    balanceAfter: p.bigint(),
    reference: p.string().length(128),
    createTime: p.datetime(),
  },
  checks: [{ name: "ledger_entry_balance_after_check", expression: "balance_after >= 0" }],
});

/** One movement of a wallet; never changed once written. The sum of a wallet's entries is its balance. */
export class LedgerEntry extends entrySchema.class {}
entrySchema.setClass(LedgerEntry);

const walletSchema = defineEntity({
  name: "Wallet",
  tableName: "wallet",
  properties: {
    userId: p.uuid().primary(),
    balance: p.bigint(),
    /** Entries in the ledger so far. */
    entries: p.bigint(),
    version: p.integer().version(),
  },
  checks: [{ name: "wallet_balance_check", expression: "balance >= 0" }],
});

/** A user's money, in minor units. */
export class Wallet extends walletSchema.class {
  static notFound(key: { userId: string }): DomainError {
    return new DomainError("USER_NOT_FOUND", "there is no such user", { user_id: key.userId });
  }

  static open(userId: string): Wallet {
    return Object.assign(new Wallet(), { userId, balance: 0n, entries: 0n });
  }

  /** Puts money in. Refused with BALANCE_LIMIT_EXCEEDED above `limit`. */
  charge(amount: bigint, limit: bigint, reference: string, now: Date): LedgerEntry {
    if (this.balance + amount > limit) {
      throw new DomainError("BALANCE_LIMIT_EXCEEDED", "the wallet would hold more than is allowed", {
        user_id: this.userId,
        balance: String(this.balance),
        limit: String(limit),
      });
    }
    return this.move("CHARGE", amount, reference, now);
  }

  /** Refuses with INSUFFICIENT_BALANCE what the wallet can't cover. */
  assertCovers(amount: bigint): void {
    if (this.balance < amount) {
      throw new DomainError("INSUFFICIENT_BALANCE", "the wallet does not cover the amount", {
        user_id: this.userId,
        available: String(this.balance),
        required: String(amount),
      });
    }
  }

  /** Takes money out for a payment. Refused with INSUFFICIENT_BALANCE when the wallet can't cover it. */
  pay(amount: bigint, paymentId: string, now: Date): LedgerEntry {
    this.assertCovers(amount);
    return this.move("PAYMENT", -amount, paymentId, now);
  }

  /** Puts money of a payment back. Never refused: it is the buyer's own money, whatever the limit. */
  refund(amount: bigint, paymentId: string, now: Date): LedgerEntry {
    return this.move("REFUND", amount, paymentId, now);
  }

  private move(kind: LedgerKind, amount: bigint, reference: string, now: Date): LedgerEntry {
    this.balance += amount;
    this.entries += 1n;
    return Object.assign(new LedgerEntry(), {
      userId: this.userId,
      seq: this.entries,
      kind,
      amount,
      balanceAfter: this.balance,
      reference,
      createTime: now,
    });
  }
}
walletSchema.setClass(Wallet);
