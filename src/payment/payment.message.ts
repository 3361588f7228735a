import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromDate } from "@bufbuild/protobuf/wkt";
import { PaymentMethod as Method, type PaymentSchema, PaymentState as State } from "../../gen/shop/v1/payment_pb.ts";
import type { Payment, PaymentMethod, PaymentState } from "./payment.entity.ts";

const methods = { BALANCE: Method.BALANCE, EXTERNAL: Method.EXTERNAL } satisfies Record<PaymentMethod, Method>;

/** The method that a caller chose; undefined when it left it open. */
export function paymentMethod(method: Method): PaymentMethod | undefined {
  if (method === Method.BALANCE) return "BALANCE";
  return method === Method.EXTERNAL ? "EXTERNAL" : undefined;
}

const states = {
  PENDING: State.PENDING,
  COMPLETED: State.COMPLETED,
  FAILED: State.FAILED,
  REFUNDED: State.REFUNDED,
  REFUNDING: State.REFUNDING,
} satisfies Record<PaymentState, State>;

/** A state of a payment in the words of the contract. */
export function toPaymentState(state: PaymentState): State {
  return states[state];
}

/** A payment as callers see it. */
export function toPayment(payment: Payment): MessageInitShape<typeof PaymentSchema> {
  const { id, orderId, userId, amount, refundedAmount, refundingAmount } = payment;
  return {
    id,
    orderId,
    userId,
    method: methods[payment.method],
    state: states[payment.state],
    amount,
    refundedAmount,
    refundingAmount,
    createTime: timestampFromDate(payment.createTime),
    updateTime: timestampFromDate(payment.updateTime),
  };
}
