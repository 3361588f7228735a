/** The shop that is measured: the same before each measurement, with ids that can be computed from a number. */
import { type Client, DatabaseError } from "pg";

/** Fewer than the tokens that the service keeps, so that checking them is not what is measured. */
export const USERS = 8_192;
export const PRODUCTS = 10_000;
const STOCK = 1_000_000_000;
export const PRICE = 1_000;
const BALANCE = 1_000_000_000;
const RESET_ATTEMPTS = 5;
const DEADLOCK = "40P01";

/** The last twelve digits of an id are this and a number: decimal, which is also hexadecimal. */
export const FIRST = 100_000_000_000;
/** Ids without their last twelve digits. */
export const prefix = {
  user: "0199d1f2-0000-7000-8000-",
  product: "0199d1f2-0001-7000-8000-",
  variant: "0199d1f2-0002-7000-8000-",
  coupon: "0199d1f2-0003-7000-8000-",
} as const;

/** The id of the thing with that number, from 0. */
export function idOf(kind: keyof typeof prefix, index: number): string {
  return `${prefix[kind]}${FIRST + index}`;
}

/** All of the service's tables but the migrations; first those that the ranking's projector locks, in its order. */
const TABLES = [
  "event, ranking_bucket, ranking_window, ranking_total, idempotency, cart_item, cart, issued_coupon, coupon, ledger_entry, order_line, shop_order",
  "payment_event, payment, variant, product, wallet, shop_user",
].join(", ");

const RESET = `
  begin;
  lock table event_reader in access exclusive mode;
  truncate ${TABLES};
  update event_reader set xid = '0', event_id = '00000000-0000-0000-0000-000000000000';
  insert into shop_user (id, name, create_time)
    select ('${prefix.user}' || ${FIRST} + n)::uuid, 'Buyer ' || n, now() from generate_series(0, ${USERS} - 1) n;
  insert into wallet (user_id, balance, entries)
    select id, ${BALANCE}, 1 from shop_user;
  insert into ledger_entry (user_id, seq, kind, amount, balance_after, reference, create_time)
    select id, 1, 'CHARGE', ${BALANCE}, ${BALANCE}, 'opening balance', now() from shop_user;
  insert into product (id, name, description, create_time, update_time, revision)
    select ('${prefix.product}' || ${FIRST} + n)::uuid, 'Product ' || n, 'Thing number ' || n || ', to measure with',
           now(), now(), 1 from generate_series(0, ${PRODUCTS} - 1) n;
  insert into variant (id, product_id, position, product_name, name, price, stock, supplied)
    select ('${prefix.variant}' || ${FIRST} + n)::uuid, ('${prefix.product}' || ${FIRST} + n)::uuid, 1, 'Product ' || n,
           'Standard', ${PRICE}, ${STOCK}, ${STOCK} from generate_series(0, ${PRODUCTS} - 1) n;
  insert into coupon (id, name, discount_amount, min_order_amount, valid_from, valid_until, total_quantity, issued,
                      per_user_limit, create_time)
    values ('${idOf("coupon", 0)}', 'Everybody''s', 500, 0, now() - interval '1 day', now() + interval '1 year',
            1000000000, 0, 1000000, now());
  commit`;

/**
 * Puts the shop back to its start, for each measurement the same: rows, statistics, and nothing left to write by a
 * checkpoint. The service may be running, but not serving.
 */
export async function reset(admin: Client): Promise<void> {
  for (let attempt = 1; ; attempt += 1) {
    try {
      await admin.query(RESET);
      break;
    } catch (error) {
      await admin.query("rollback");
      // Its background jobs look at the same tables.
      const deadlock = error instanceof DatabaseError && error.code === DEADLOCK;
      if (!deadlock || attempt === RESET_ATTEMPTS) throw error;
    }
  }
  await admin.query("vacuum analyze");
  await admin.query("checkpoint");
}

/** Leaves the service, which is idle while others are measured, nothing to count of their sales. */
export async function rankNothing(admin: Client): Promise<void> {
  await admin.query("update event_reader set xid = '9223372036854775807'");
}
