import { Migration } from "@mikro-orm/migrations";

const types = (more: string) =>
  `check ("type" in ('order.placed', 'order.paid', 'order.cancelled', 'order.expired', ${more}'payment.completed', 'payment.failed', 'payment.refunded', 'balance.charged', 'coupon.claimed', 'stock.adjusted'))`;
const ranked = (more: string) =>
  `create index "event_ranked_index" on "event" ("xid", "id") where type in ('order.paid', 'order.cancelled'${more});`;

export class Migration20261129174500_partial_refunds extends Migration {
  override name = "Migration20261129174500_partial_refunds";

  override up(): void | Promise<void> {
    this.addSql(`alter table "event" drop constraint "event_type_check";`);
    this.addSql(`alter table "event" add constraint "event_type_check" ${types("'order.returned', ")};`);
    this.addSql(`drop index "event_ranked_index";`);
    this.addSql(ranked(", 'order.returned'"));

    this.addSql(
      `alter table "order_line" add "returned" int not null default 0, add "version" int not null default 1, add constraint "order_line_returned_check" check (returned >= 0 and returned <= quantity);`,
    );

    this.addSql(
      `create table "gateway_refund" ("order_id" uuid not null, "id" uuid not null, "payment_id" uuid not null, "amount" bigint not null, "state" text not null, "tries" int not null default 0, "next_try_time" timestamptz null, "create_time" timestamptz not null, "version" int not null default 1, primary key ("order_id", "id"));`,
    );
    this.addSql(
      `create index "gateway_refund_pending_index" on "gateway_refund" ("next_try_time") where state = 'PENDING';`,
    );
    this.addSql(
      `alter table "gateway_refund" add constraint "gateway_refund_amount_check" check (amount > 0), add constraint "gateway_refund_try_check" check ((state = 'PENDING') = (next_try_time is not null)), add constraint "gateway_refund_state_check" check ("state" in ('PENDING', 'COMPLETED'));`,
    );
    // The gateway knows a refund by its id: one that it may have been asked for already keeps the one that it had.
    this.addSql(
      `insert into "gateway_refund" ("order_id", "id", "payment_id", "amount", "state", "next_try_time", "create_time") select "order_id", "id", "id", "amount", case "state" when 'REFUNDED' then 'COMPLETED' else 'PENDING' end, "next_try_time", "update_time" from "payment" where "method" = 'EXTERNAL' and "amount" > 0 and "state" in ('REFUNDING', 'REFUNDED');`,
    );

    this.addSql(`alter table "payment" drop constraint "payment_amount_check";`);
    this.addSql(`alter table "payment" add "refunding_amount" bigint not null default 0;`);
    this.addSql(
      `update "payment" set "refunding_amount" = "amount", "next_try_time" = null where "state" = 'REFUNDING';`,
    );
    this.addSql(
      `alter table "payment" add constraint "payment_amount_check" check (refunded_amount >= 0 and refunding_amount >= 0 and refunded_amount + refunding_amount <= amount);`,
    );
    this.addSql(
      `alter table "payment" add constraint "payment_refunding_check" check (state <> 'REFUNDING' or refunding_amount > 0);`,
    );
    this.addSql(`drop index "payment_unsettled_index";`);
    this.addSql(`create index "payment_pending_index" on "payment" ("next_try_time") where state = 'PENDING';`);
  }

  /** Fails where refunds were made that the version before knows nothing of. */
  override down(): void | Promise<void> {
    this.addSql(`alter table "gateway_refund" add constraint "whole" check ("id" = "payment_id");`);
    this.addSql(
      `alter table "payment" add constraint "whole" check ("state" = 'REFUNDED' or "refunded_amount" = 0), drop constraint "payment_refunding_check";`,
    );
    this.addSql(`alter table "payment" drop constraint "whole";`);
    this.addSql(`alter table "order_line" add constraint "whole" check ("returned" = 0);`);
    this.addSql(`alter table "order_line" drop constraint "whole";`);
    this.addSql(`drop index "payment_pending_index";`);
    this.addSql(`update "payment" set "next_try_time" = now() where "state" = 'REFUNDING';`);
    this.addSql(`alter table "payment" drop constraint "payment_amount_check", drop column "refunding_amount";`);
    this.addSql(
      `alter table "payment" add constraint "payment_amount_check" check (amount >= 0 and refunded_amount >= 0 and refunded_amount <= amount);`,
    );
    this.addSql(
      `create index "payment_unsettled_index" on "payment" ("next_try_time") where state in ('PENDING', 'REFUNDING');`,
    );
    this.addSql(`drop table "gateway_refund";`);
    this.addSql(
      `alter table "order_line" drop constraint "order_line_returned_check", drop column "returned", drop column "version";`,
    );
    this.addSql(`drop index "event_ranked_index";`);
    this.addSql(ranked(""));
    this.addSql(`alter table "event" drop constraint "event_type_check";`);
    this.addSql(`alter table "event" add constraint "event_type_check" ${types("")};`);
  }
}
