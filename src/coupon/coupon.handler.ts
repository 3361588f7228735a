import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampDate, timestampFromDate } from "@bufbuild/protobuf/wkt";
import type { ServiceImpl } from "@connectrpc/connect";
import {
  type CouponSchema,
  CouponService,
  type CreateCouponRequest,
  type DiscountSchema,
  type IssuedCouponSchema,
  IssuedCouponState,
} from "../../gen/shop/v1/coupon_pb.ts";
import { write } from "../rpc/handler.ts";
import type { Coupon, IssuedCoupon } from "./coupon.entity.ts";
import type { Coupons } from "./coupon.service.ts";

export function couponHandler(coupons: Coupons): ServiceImpl<typeof CouponService> {
  const { method } = CouponService;
  return {
    createCoupon: write(
      method.createCoupon,
      (request, call) => coupons.create(call, newCoupon(request)),
      (coupon) => ({ coupon: toCoupon(coupon) }),
    ),
    async getCoupon(request) {
      return { coupon: toCoupon(await coupons.get(request.couponId)) };
    },
    async listCoupons(request) {
      const { items, nextPageToken } = await coupons.list(request);
      return { coupons: items.map(toCoupon), nextPageToken };
    },
    claimCoupon: write(
      method.claimCoupon,
      (request, call) => coupons.claim(call, request),
      (issued) => ({ issuedCoupon: toIssuedCoupon(issued) }),
    ),
    async listIssuedCoupons(request) {
      const { items, nextPageToken } = await coupons.listIssued(request.userId, request);
      return { issuedCoupons: items.map(toIssuedCoupon), nextPageToken };
    },
  };
}

/** The contract's rules have seen to it that there is a discount and a `valid_until`. */
function newCoupon(request: CreateCouponRequest): Parameters<Coupons["create"]>[1] {
  const { name, discount, minOrderAmount, totalQuantity, perUserLimit, validFrom, validUntil } = request;
  const kind = discount?.kind;
  const percent = kind?.case === "percent" ? kind.value : undefined;
  return {
    name,
    discountAmount: kind?.case === "amount" ? kind.value : null,
    discountPercent: percent?.percent ?? null,
    maxDiscount: percent?.maxDiscount ?? null,
    minOrderAmount,
    totalQuantity,
    perUserLimit: perUserLimit ?? 1,
    validFrom: validFrom && timestampDate(validFrom),
    validUntil: validUntil ? timestampDate(validUntil) : new Date(0),
  };
}

function toDiscount(coupon: Coupon): MessageInitShape<typeof DiscountSchema> {
  const { discountAmount, discountPercent, maxDiscount } = coupon;
  if (discountAmount !== null) return { kind: { case: "amount", value: discountAmount } };
  const value = { percent: discountPercent ?? 0, ...(maxDiscount !== null && { maxDiscount }) };
  return { kind: { case: "percent", value } };
}

function toCoupon(coupon: Coupon): MessageInitShape<typeof CouponSchema> {
  const { id, name, minOrderAmount, totalQuantity, remaining, perUserLimit } = coupon;
  return {
    id,
    name,
    discount: toDiscount(coupon),
    minOrderAmount,
    totalQuantity,
    remaining,
    perUserLimit,
    validFrom: timestampFromDate(coupon.validFrom),
    validUntil: timestampFromDate(coupon.validUntil),
    createTime: timestampFromDate(coupon.createTime),
  };
}

function toIssuedCoupon(issued: IssuedCoupon): MessageInitShape<typeof IssuedCouponSchema> {
  const { id, couponId, userId, orderId, issueTime } = issued;
  const state = orderId === null ? IssuedCouponState.ISSUED : IssuedCouponState.USED;
  return { id, couponId, userId, state, orderId: orderId ?? "", issueTime: timestampFromDate(issueTime) };
}
