import type { MessageInitShape } from "@bufbuild/protobuf";
import type { ServiceImpl } from "@connectrpc/connect";
import { type CartItemSchema, CartService, IfPresent } from "../../gen/shop/v1/cart_pb.ts";
import { write } from "../rpc/handler.ts";
import type { Carts, PricedItem } from "./cart.service.ts";

export function cartHandler(carts: Carts): ServiceImpl<typeof CartService> {
  const { method } = CartService;
  return {
    addItem: write(
      method.addItem,
      (request, call) => carts.addItem(call, { ...request, rejectPresent: request.ifPresent === IfPresent.REJECT }),
      ({ variantId, quantity }) => ({ variantId, quantity }),
    ),
    updateItem: write(
      method.updateItem,
      (request, call) => carts.updateItem(call, request),
      ({ variantId, quantity }) => ({ variantId, quantity }),
    ),
    removeItem: write(
      method.removeItem,
      (request, call) => carts.removeItem(call, request),
      () => ({}),
    ),
    async getCart({ userId }) {
      const items = await carts.get(userId);
      const subtotal = items.reduce((sum, { lineTotal }) => sum + lineTotal, 0n);
      return { cart: { userId, items: items.map(toCartItem), subtotal } };
    },
    clearCart: write(
      method.clearCart,
      (request, call) => carts.clear(call, request.userId),
      () => ({}),
    ),
  };
}

function toCartItem({ item, variant, lineTotal, purchasable }: PricedItem): MessageInitShape<typeof CartItemSchema> {
  return {
    variantId: variant.id,
    productId: variant.productId,
    productName: variant.productName,
    variantName: variant.name,
    quantity: item.quantity,
    price: variant.price,
    lineTotal,
    purchasable,
  };
}
