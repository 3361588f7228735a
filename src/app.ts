import { LedgerEntry, Wallet } from "./balance/balance.entity.ts";
import { Cart, CartItem } from "./cart/cart.entity.ts";
import { Coupon, IssuedCoupon } from "./coupon/coupon.entity.ts";
import { Order, OrderLine } from "./order/order.entity.ts";
import { Event } from "./outbox/event.entity.ts";
import { Payment, PaymentEvent } from "./payment/payment.entity.ts";
import { Product, Variant } from "./product/product.entity.ts";
import { RankingBucket, RankingPosition } from "./ranking/ranking.entity.ts";
import { User } from "./user/user.entity.ts";

/** Everything that is stored, besides what the database layer keeps for itself. */
export const entities = [
  User,
  Wallet,
  LedgerEntry,
  Product,
  Variant,
  Coupon,
  IssuedCoupon,
  Cart,
  CartItem,
  Order,
  OrderLine,
  Payment,
  PaymentEvent,
  Event,
  RankingBucket,
  RankingPosition,
];
