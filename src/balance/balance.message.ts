import type { MessageInitShape } from "@bufbuild/protobuf";
import type { BalanceSchema } from "../../gen/shop/v1/balance_pb.ts";
import type { Wallet } from "./balance.entity.ts";

/** A wallet as callers see it. */
export function toBalance(wallet: Wallet): MessageInitShape<typeof BalanceSchema> {
  return { userId: wallet.userId, amount: wallet.balance };
}
