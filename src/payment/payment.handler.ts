import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromDate } from "@bufbuild/protobuf/wkt";
import type { ServiceImpl } from "@connectrpc/connect";
import { type PaymentEventSchema, PaymentService } from "../../gen/shop/v1/payment_pb.ts";
import { write } from "../rpc/handler.ts";
import type { PaymentEvent } from "./payment.entity.ts";
import { paymentMethod, toPayment, toPaymentState } from "./payment.message.ts";
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
      ({ lines: units, ...request }, call) => payments.refund(call, { ...request, units }),
      ({ payment, amount: refundAmount }) => ({ payment: toPayment(payment), refundAmount }),
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

function toPaymentEvent(event: PaymentEvent): MessageInitShape<typeof PaymentEventSchema> {
  const { seq, state, amount, cause, createTime, gatewayReference } = event;
  return {
    seq,
    state: toPaymentState(state),
    amount,
    cause,
    createTime: timestampFromDate(createTime),
    gatewayReference: gatewayReference ?? "",
  };
}
