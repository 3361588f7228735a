import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromDate } from "@bufbuild/protobuf/wkt";
import type { ServiceImpl } from "@connectrpc/connect";
import { BalanceService, LedgerKind as Kind, type LedgerEntrySchema } from "../../gen/shop/v1/balance_pb.ts";
import { write } from "../rpc/handler.ts";
import type { LedgerEntry, LedgerKind } from "./balance.entity.ts";
import { toBalance } from "./balance.message.ts";
import type { Balances } from "./balance.service.ts";

export function balanceHandler(balances: Balances): ServiceImpl<typeof BalanceService> {
  return {
    async getBalance(request) {
      return { balance: toBalance(await balances.get(request.userId)) };
    },
    chargeBalance: write(
      BalanceService.method.chargeBalance,
      (request, call) => balances.charge(call, request),
      ({ wallet, entry }) => ({ balance: toBalance(wallet), entry: toLedgerEntry(entry) }),
    ),
    async listLedgerEntries(request) {
      const { items, nextPageToken } = await balances.listEntries(request.userId, request);
      return { entries: items.map(toLedgerEntry), nextPageToken };
    },
  };
}

const kinds = {
  CHARGE: Kind.CHARGE,
  PAYMENT: Kind.PAYMENT,
  REFUND: Kind.REFUND,
} satisfies Record<LedgerKind, Kind>;

function toLedgerEntry(entry: LedgerEntry): MessageInitShape<typeof LedgerEntrySchema> {
  const { seq, kind, amount, balanceAfter, reference, createTime } = entry;
  return { seq, kind: kinds[kind], amount, balanceAfter, reference, createTime: timestampFromDate(createTime) };
}
