import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromDate } from "@bufbuild/protobuf/wkt";
import type { ServiceImpl } from "@connectrpc/connect";
import {
  type ObstacleSchema,
  type OrderLineSchema,
  type OrderSchema,
  OrderService,
  OrderState as State,
} from "../../gen/shop/v1/order_pb.ts";
import { toBalance } from "../balance/balance.message.ts";
import { paymentMethod, toPayment } from "../payment/payment.message.ts";
import { write } from "../rpc/handler.ts";
import type { OrderLine, OrderState } from "./order.entity.ts";
import type { Orders, OrderWithLines, Purchase } from "./order.service.ts";
import type { Obstacle } from "./quote.ts";

export function orderHandler(orders: Orders): ServiceImpl<typeof OrderService> {
  const { method } = OrderService;
  return {
    async quoteOrder(request) {
      const { lines, subtotal, discount, total, obstacles } = await orders.quote(purchaseOf(request));
      return { lines: lines.map(toLine), subtotal, discount, total, obstacles: obstacles.map(toObstacle) };
    },
    placeOrder: write(
      method.placeOrder,
      (request, call) => orders.place(call, purchaseOf(request), paymentMethod(request.paymentMethod)),
      (order) => ({ order: toOrder(order) }),
    ),
    checkout: write(
      method.checkout,
      (request, call) => orders.checkout(call, purchaseOf(request)),
      ({ payment, wallet, ...order }) => ({
        order: toOrder(order),
        payment: toPayment(payment),
        balance: toBalance(wallet),
      }),
    ),
    async getOrder(request) {
      return { order: toOrder(await orders.get(request.userId, request.orderId)) };
    },
    async listOrders(request) {
      const { items, nextPageToken } = await orders.list(request.userId, request);
      return { orders: items.map(toOrder), nextPageToken };
    },
    cancelOrder: write(
      method.cancelOrder,
      (request, call) => orders.cancel(call, request),
      (order) => ({ order: toOrder(order) }),
    ),
  };
}

type PurchaseRequest = Pick<Purchase, "userId" | "lines" | "fromCart"> & {
  issuedCouponId: string;
  expectedTotal?: bigint | undefined;
};

function purchaseOf({ userId, lines, fromCart, issuedCouponId, expectedTotal }: PurchaseRequest): Purchase {
  return { userId, lines, fromCart, issuedCouponId: issuedCouponId || undefined, expectedTotal };
}

const states = {
  PENDING_PAYMENT: State.PENDING_PAYMENT,
  PAID: State.PAID,
  CANCELLED: State.CANCELLED,
  EXPIRED: State.EXPIRED,
} satisfies Record<OrderState, State>;

function toLine(line: OrderLine): MessageInitShape<typeof OrderLineSchema> {
  const { variantId, productId, productName, variantName, price, quantity, total: lineTotal } = line;
  const { returned: returnedQuantity } = line;
  return { variantId, productId, productName, variantName, price, quantity, lineTotal, returnedQuantity };
}

function toOrder({ order, lines }: OrderWithLines): MessageInitShape<typeof OrderSchema> {
  const { id, userId, subtotal, discount, total, issuedCouponId } = order;
  return {
    id,
    userId,
    state: states[order.state],
    lines: lines.map(toLine),
    subtotal,
    discount,
    total,
    issuedCouponId: issuedCouponId ?? "",
    createTime: timestampFromDate(order.createTime),
    expireTime: timestampFromDate(order.expireTime),
    updateTime: timestampFromDate(order.updateTime),
  };
}

function toObstacle({ error, variantId, issuedCouponId }: Obstacle): MessageInitShape<typeof ObstacleSchema> {
  const { reason, message } = error;
  return { reason, message, variantId: variantId ?? "", issuedCouponId: issuedCouponId ?? "" };
}
