/** What the load generator asks for: requests as bytes in which only digits change, and what their answers must say. */
import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { ClaimCouponRequestSchema, ClaimCouponResponseSchema } from "../gen/shop/v1/coupon_pb.ts";
import {
  CheckoutRequestSchema,
  CheckoutResponseSchema,
  type Order,
  OrderState,
  PlaceOrderRequestSchema,
  PlaceOrderResponseSchema,
} from "../gen/shop/v1/order_pb.ts";
import {
  PaymentMethod,
  PaymentState,
  PayOrderRequestSchema,
  PayOrderResponseSchema,
} from "../gen/shop/v1/payment_pb.ts";
import { GetProductRequestSchema, GetProductResponseSchema } from "../gen/shop/v1/product_pb.ts";
import { FIRST, idOf } from "./data.ts";

/** `buy` is two calls: PlaceOrder, and PayOrder for what was placed. */
export type RpcName = "place" | "checkout" | "claim" | "product" | "buy";

const ID_LENGTH = 36;
const DIGITS = 12;
const REQUEST_ID = `bench-00000000-${FIRST}`;

/** Changes the number at the end of something in a message. */
type Patch = (index: number) => void;

/** One request that is sent over and over, changed in place. */
export type Template = {
  readonly path: string;
  readonly message: Buffer;
  readonly setRequest: Patch;
  readonly setUser: Patch;
  readonly setItem: Patch;
  /** The call that follows a good answer, and completes the work. */
  readonly next?: Readonly<{ path: string; message(answer: Buffer, user: number): Buffer }>;
  /** Says what is wrong with an answer, or nothing. */
  check(answer: Buffer, user: number, item: number): string | undefined;
};

function patch(message: Buffer, text: string): Patch {
  const start = message.indexOf(text, 0, "latin1");
  if (start < 0) return () => {};
  const last = start + text.length - 1;
  return (index) => {
    let rest = index;
    // The first digit stays what it is in `FIRST`.
    for (let at = last; at > last - DIGITS + 1; at -= 1) {
      message[at] = 48 + (rest % 10);
      rest = Math.trunc(rest / 10);
    }
  };
}

function checkOrder(order: Order | undefined, state: OrderState, user: number, item: number): string | undefined {
  if (order?.userId !== idOf("user", user)) return "an order of somebody else";
  if (order.state !== state) return `an order in state ${order.state}`;
  const [line] = order.lines;
  if (line?.variantId !== idOf("variant", item) || line.quantity !== 1) return "an order of something else";
  return order.id.length === ID_LENGTH && order.total === line.price ? undefined : "an order that does not add up";
}

/** `tag`: eight characters that no other run of the same data has, so that request ids are new. */
export function templateOf(rpc: RpcName, tag: string): Template {
  const requestId = REQUEST_ID.replace("00000000", tag);
  const userId = idOf("user", 0);
  const lines = [{ variantId: idOf("variant", 0), quantity: 1 }];
  const template = (path: string, bytes: Uint8Array, item: string, check: Template["check"]): Template => {
    const message = Buffer.from(bytes);
    const setRequest = patch(message, requestId);
    return { path, message, setRequest, setUser: patch(message, userId), setItem: patch(message, item), check };
  };
  switch (rpc) {
    case "place": {
      const request = toBinary(PlaceOrderRequestSchema, create(PlaceOrderRequestSchema, { requestId, userId, lines }));
      return template("/shop.v1.OrderService/PlaceOrder", request, idOf("variant", 0), (bytes, user, item) =>
        checkOrder(fromBinary(PlaceOrderResponseSchema, bytes).order, OrderState.PENDING_PAYMENT, user, item),
      );
    }
    case "buy": {
      const place = templateOf("place", tag);
      const message = (answer: Buffer, user: number) => {
        const orderId = fromBinary(PlaceOrderResponseSchema, answer).order?.id ?? "";
        const pay = { requestId: `pay-${orderId}`, userId: idOf("user", user), orderId, method: PaymentMethod.BALANCE };
        return Buffer.from(toBinary(PayOrderRequestSchema, create(PayOrderRequestSchema, pay)));
      };
      const check = (bytes: Uint8Array, user: number) => {
        const { payment } = fromBinary(PayOrderResponseSchema, bytes);
        if (payment?.userId !== idOf("user", user)) return "a payment of somebody else";
        return payment.state === PaymentState.COMPLETED ? undefined : `a payment in state ${payment.state}`;
      };
      return { ...place, next: { path: "/shop.v1.PaymentService/PayOrder", message }, check };
    }
    case "checkout": {
      const request = toBinary(CheckoutRequestSchema, create(CheckoutRequestSchema, { requestId, userId, lines }));
      return template("/shop.v1.OrderService/Checkout", request, idOf("variant", 0), (bytes, user, item) => {
        const answer = fromBinary(CheckoutResponseSchema, bytes);
        if (answer.payment?.orderId !== answer.order?.id) return "a payment of something else";
        return checkOrder(answer.order, OrderState.PAID, user, item);
      });
    }
    case "claim": {
      const couponId = idOf("coupon", 0);
      const init = create(ClaimCouponRequestSchema, { requestId, userId, couponId });
      const request = toBinary(ClaimCouponRequestSchema, init);
      return template("/shop.v1.CouponService/ClaimCoupon", request, couponId, (bytes, user, item) => {
        const issued = fromBinary(ClaimCouponResponseSchema, bytes).issuedCoupon;
        if (issued?.userId !== idOf("user", user)) return "a coupon of somebody else";
        return issued.couponId === idOf("coupon", item) ? undefined : "another coupon";
      });
    }
    case "product": {
      const productId = idOf("product", 0);
      const request = toBinary(GetProductRequestSchema, create(GetProductRequestSchema, { productId }));
      return template("/shop.v1.ProductService/GetProduct", request, productId, (bytes, _user, item) => {
        const product = fromBinary(GetProductResponseSchema, bytes).product;
        return product?.id === idOf("product", item) && product.variants.length === 1 ? undefined : "another product";
      });
    }
  }
}
