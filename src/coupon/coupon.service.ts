import { randomUUIDv7 } from "node:crypto";
import { share, touch, type Write } from "../db/command.ts";
import type { Database } from "../db/database.ts";
import { byId, type Page, type PageRequest, pageOf } from "../db/page.ts";
import { DomainError } from "../error.ts";
import { Event } from "../outbox/event.entity.ts";
import { User } from "../user/user.entity.ts";
import { Coupon, IssuedCoupon, type NewCoupon } from "./coupon.entity.ts";

/** Coupons and who holds them. */
export class Coupons {
  readonly #db: Database;

  constructor(db: Database) {
    this.#db = db;
  }

  /** `validFrom` undefined: from now. @throws DomainError ARGUMENT_INVALID when it would end before it starts */
  create(call: Write, input: Omit<NewCoupon, "id" | "validFrom"> & { validFrom: Date | undefined }): Promise<Coupon> {
    return this.#db.write(call, {
      touches: [],
      decide: (tx) => {
        const validFrom = input.validFrom ?? tx.now;
        if (input.validUntil <= validFrom) {
          const violations = [{ field: "valid_until", description: "must be in the future" }];
          throw new DomainError("ARGUMENT_INVALID", "the coupon would end before it starts", {}, { violations });
        }
        const coupon = Coupon.create({ ...input, validFrom, id: randomUUIDv7() }, tx.now);
        tx.add(coupon);
        return coupon;
      },
    });
  }

  /** @throws DomainError COUPON_NOT_FOUND */
  async get(id: string): Promise<Coupon> {
    const coupon = await this.#db.find(Coupon, { id });
    if (!coupon) throw Coupon.notFound({ id });
    return coupon;
  }

  /** Newest first. @throws DomainError PAGE_TOKEN_INVALID */
  list(request: PageRequest): Promise<Page<Coupon>> {
    return this.#db.read((em) =>
      pageOf(
        "coupons",
        request,
        byId,
        (coupon: Coupon) => coupon.id,
        (after, limit) => em.find(Coupon, after ? { id: { $lt: after } } : {}, { limit, orderBy: { id: "desc" } }),
      ),
    );
  }

  /**
   * Issues one piece to the user.
   *
   * @throws DomainError USER_NOT_FOUND, COUPON_NOT_FOUND, COUPON_NOT_USABLE outside its time, COUPON_ALREADY_CLAIMED,
   *   COUPON_SOLD_OUT
   */
  claim(call: Write, input: { userId: string; couponId: string }): Promise<IssuedCoupon> {
    const { userId, couponId } = input;
    return this.#db.write(call, {
      touches: [
        touch(User, { id: userId }),
        share(Coupon, { id: couponId }),
        touch(IssuedCoupon, { userId, couponId }),
      ],
      decide: (tx) => {
        tx.get(User, { id: userId });
        const held = tx.list(IssuedCoupon, { userId, couponId }).length;
        const issued = tx.get(Coupon, { id: couponId }).issueTo(userId, held, randomUUIDv7(), tx.now);
        tx.add(issued);
        const facts = { coupon_id: couponId, user_id: userId, issued_coupon_id: issued.id };
        tx.add(Event.of("coupon.claimed", couponId, facts, tx.now));
        return issued;
      },
    });
  }

  /** Newest first. @throws DomainError USER_NOT_FOUND, PAGE_TOKEN_INVALID */
  listIssued(userId: string, request: PageRequest): Promise<Page<IssuedCoupon>> {
    return this.#db.read(async (em) => {
      const page = await pageOf(
        "issued-coupons",
        request,
        byId,
        (issued: IssuedCoupon) => issued.id,
        (after, limit) =>
          em.find(IssuedCoupon, { userId, ...(after && { id: { $lt: after } }) }, { limit, orderBy: { id: "desc" } }),
      );
      if (page.items.length === 0 && !(await em.findOne(User, { id: userId }))) throw User.notFound({ id: userId });
      return page;
    });
  }
}
