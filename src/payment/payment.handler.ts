import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromDate } from "@bufbuild/protobuf/wkt";
import type { ServiceImpl } from "@connectrpc/connect";
import {
  PaymentMethod as Method,
  type PaymentEventSchema,
  type PaymentSchema,
  PaymentService,
  PaymentState as State,
} from "../../gen/shop/v1/payment_pb.ts";
import { write } from "../rpc/handler.ts";
import type { Payment, PaymentEvent, PaymentMethod, PaymentState } from "./payment.entity.ts";
import type { Payments } from "./payment.service.ts";

export function paymentHandler(payments: Payments): ServiceImpl<typeof PaymentService> {
  const { method } = PaymentService;
  return {
    payOrder: write(
      method.payOrder,
      (request, call) => payments.pay(call, { ...request, method: paymentMethod(request.method) }),
      (payment) => ({ payment: toPayment(payment) }),
    ),
    refundPayment: write(
      method.refundPayment,
      (request, call) => payments.refund(call, request),
      (payment) => ({ payment: toPayment(payment) }),
    ),
    async getPayment({ userId, paymentId }) {
      return { payment: toPayment(await payments.get(userId, paymentId)) };
    },
    async listPaymentEvents(request) {
      const { userId, paymentId } = request;
      const { items, nextPageToken } = await payments.listEvents(userId, paymentId, request);
      return { events: items.map(toPaymentEvent), nextPageToken };
    },
  };
}

const methods = { BALANCE: Method.BALANCE, EXTERNAL: Method.EXTERNAL } satisfies Record<PaymentMethod, Method>;

/** Undefined when the caller left it open. */
export function paymentMethod(method: Method): PaymentMethod | undefined {
  if (method === Method.BALANCE) return "BALANCE";
  return method === Method.EXTERNAL ? "EXTERNAL" : undefined;
}

const states = {
  PENDING: State.PENDING,
  COMPLETED: State.COMPLETED,
  FAILED: State.FAILED,
  REFUNDED: State.REFUNDED,
} satisfies Record<PaymentState, State>;

export function toPayment(payment: Payment): MessageInitShape<typeof PaymentSchema> {
  const { id, orderId, userId, amount, refundedAmount } = payment;
  return {
    id,
    orderId,
    userId,
    method: methods[payment.method],
    state: states[payment.state],
    amount,
    refundedAmount,
    createTime: timestampFromDate(payment.createTime),
    updateTime: timestampFromDate(payment.updateTime),
  };
}

function toPaymentEvent(event: PaymentEvent): MessageInitShape<typeof PaymentEventSchema> {
  const { seq, state, amount, cause, createTime } = event;
  return { seq, state: states[state], amount, cause, createTime: timestampFromDate(createTime) };
}
