import { Migration } from "@mikro-orm/migrations";

export class Migration20261120185023_initial extends Migration {
  override name = "Migration20261120185023_initial";

  override up(): void | Promise<void> {
    this.addSql(
      `create table "idempotency" ("scope" varchar(255) not null, "rpc" varchar(100) not null, "request_id" varchar(64) not null, "fingerprint" bytea not null, "response" bytea not null, "create_time" timestamptz not null, primary key ("scope", "rpc", "request_id"));`,
    );
    this.addSql(`create index "idempotency_create_time_index" on "idempotency" ("create_time");`);

    this.addSql(
      `create table "cart" ("user_id" uuid not null, "changes" bigint not null, "version" int not null default 1, primary key ("user_id"));`,
    );

    this.addSql(
      `create table "cart_item" ("user_id" uuid not null, "variant_id" uuid not null, "quantity" int not null, "position" bigint not null, primary key ("user_id", "variant_id"));`,
    );

    this.addSql(
      `create table "coupon" ("id" uuid not null, "name" varchar(200) not null, "discount_amount" bigint null, "discount_percent" int null, "max_discount" bigint null, "min_order_amount" bigint not null, "valid_from" timestamptz not null, "valid_until" timestamptz not null, "total_quantity" int not null, "issued" int not null, "per_user_limit" int not null, "create_time" timestamptz not null, "version" int not null default 1, primary key ("id"));`,
    );

    this.addSql(
      `create table "event" ("id" uuid not null, "aggregatetype" varchar(50) not null, "aggregateid" varchar(64) not null, "type" text not null, "payload" jsonb not null, "create_time" timestamptz not null, "xid" xid8 not null default pg_current_xact_id(), primary key ("id"));`,
    );
    this.addSql(`create index "event_xid_id_index" on "event" ("xid", "id");`);

    this.addSql(
      `create table "issued_coupon" ("user_id" uuid not null, "id" uuid not null, "coupon_id" uuid not null, "ordinal" int not null, "discount_amount" bigint null, "discount_percent" int null, "max_discount" bigint null, "min_order_amount" bigint not null, "valid_from" timestamptz not null, "valid_until" timestamptz not null, "order_id" uuid null, "issue_time" timestamptz not null, "version" int not null default 1, primary key ("user_id", "id"));`,
    );
    this.addSql(
      `alter table "issued_coupon" add constraint "issued_coupon_user_id_coupon_id_ordinal_unique" unique ("user_id", "coupon_id", "ordinal");`,
    );

    this.addSql(
      `create table "ledger_entry" ("user_id" uuid not null, "seq" bigint not null, "kind" text not null, "amount" bigint not null, "balance_after" bigint not null, "reference" varchar(128) not null, "create_time" timestamptz not null, primary key ("user_id", "seq"));`,
    );

    this.addSql(
      `create table "shop_order" ("id" uuid not null, "user_id" uuid not null, "state" text not null, "subtotal" bigint not null, "discount" bigint not null, "total" bigint not null, "issued_coupon_id" uuid null, "create_time" timestamptz not null, "expire_time" timestamptz not null, "pay_time" timestamptz null, "update_time" timestamptz not null, "version" int not null default 1, primary key ("id"));`,
    );
    this.addSql(`create index "shop_order_user_id_id_index" on "shop_order" ("user_id", "id");`);
    this.addSql(
      `create index "shop_order_pending_index" on "shop_order" ("expire_time") where state = 'PENDING_PAYMENT';`,
    );

    this.addSql(
      `create table "order_line" ("order_id" uuid not null, "line_no" int not null, "variant_id" uuid not null, "product_id" uuid not null, "product_name" varchar(200) not null, "variant_name" varchar(100) not null, "price" bigint not null, "quantity" int not null, primary key ("order_id", "line_no"));`,
    );

    this.addSql(
      `create table "payment" ("order_id" uuid not null, "id" uuid not null, "user_id" uuid not null, "method" text not null, "state" text not null, "amount" bigint not null, "refunded_amount" bigint not null, "events" int not null, "create_time" timestamptz not null, "update_time" timestamptz not null, "version" int not null default 1, primary key ("order_id", "id"));`,
    );
    this.addSql(`create index "payment_id_index" on "payment" ("id");`);
    this.addSql(`create unique index "payment_completed_once" on "payment" ("order_id") where state = 'COMPLETED';`);

    this.addSql(
      `create table "payment_event" ("order_id" uuid not null, "payment_id" uuid not null, "seq" int not null, "state" text not null, "amount" bigint not null, "cause" varchar(200) not null, "create_time" timestamptz not null, primary key ("order_id", "payment_id", "seq"));`,
    );

    this.addSql(
      `create table "product" ("id" uuid not null, "name" varchar(200) not null, "description" text not null, "create_time" timestamptz not null, "update_time" timestamptz not null, "revision" int not null, "version" int not null default 1, primary key ("id"));`,
    );

    this.addSql(
      `create table "ranking_bucket" ("variant_id" uuid not null, "hour" timestamptz not null, "product_id" uuid not null, "quantity" bigint not null, primary key ("variant_id", "hour"));`,
    );
    this.addSql(`create index "ranking_bucket_hour_index" on "ranking_bucket" ("hour");`);

    this.addSql(
      `create table "ranking_position" ("name" varchar(50) not null, "xid" xid8 not null, "event_id" uuid not null, primary key ("name"));`,
    );

    this.addSql(
      `create table "shop_user" ("id" uuid not null, "name" varchar(100) not null, "create_time" timestamptz not null, primary key ("id"));`,
    );

    this.addSql(
      `create table "variant" ("id" uuid not null, "product_id" uuid not null, "position" int not null, "product_name" varchar(200) not null, "name" varchar(100) not null, "price" bigint not null, "stock" int not null, "version" int not null default 1, primary key ("id"));`,
    );
    this.addSql(
      `alter table "variant" add constraint "variant_product_id_position_unique" unique ("product_id", "position");`,
    );

    this.addSql(
      `create table "wallet" ("user_id" uuid not null, "balance" bigint not null, "entries" bigint not null, "version" int not null default 1, primary key ("user_id"));`,
    );

    this.addSql(
      `alter table "cart_item" add constraint "cart_item_user_id_foreign" foreign key ("user_id") references "cart" ("user_id");`,
    );
    this.addSql(
      `alter table "cart_item" add constraint "cart_item_quantity_check" check (quantity >= 1 and quantity <= 9999);`,
    );

    this.addSql(
      `alter table "coupon" add constraint "coupon_issued_check" check (issued >= 0 and issued <= total_quantity);`,
    );
    this.addSql(
      `alter table "coupon" add constraint "coupon_discount_check" check ((discount_amount is null) <> (discount_percent is null));`,
    );

    this.addSql(
      `alter table "event" add constraint "event_type_check" check ("type" in ('order.placed', 'order.paid', 'order.cancelled', 'order.expired', 'payment.completed', 'payment.failed', 'payment.refunded', 'balance.charged', 'coupon.claimed', 'stock.adjusted'));`,
    );

    this.addSql(
      `alter table "ledger_entry" add constraint "ledger_entry_balance_after_check" check (balance_after >= 0);`,
    );
    this.addSql(
      `alter table "ledger_entry" add constraint "ledger_entry_kind_check" check ("kind" in ('CHARGE', 'PAYMENT', 'REFUND'));`,
    );

    this.addSql(
      `alter table "shop_order" add constraint "shop_order_total_check" check (total = subtotal - discount and total >= 0 and discount >= 0);`,
    );
    this.addSql(
      `alter table "shop_order" add constraint "shop_order_state_check" check ("state" in ('PENDING_PAYMENT', 'PAID', 'CANCELLED', 'EXPIRED'));`,
    );

    this.addSql(
      `alter table "order_line" add constraint "order_line_order_id_foreign" foreign key ("order_id") references "shop_order" ("id");`,
    );
    this.addSql(
      `alter table "order_line" add constraint "order_line_quantity_check" check (quantity >= 1 and quantity <= 9999);`,
    );

    this.addSql(
      `alter table "payment" add constraint "payment_amount_check" check (amount >= 0 and refunded_amount >= 0 and refunded_amount <= amount);`,
    );
    this.addSql(
      `alter table "payment" add constraint "payment_method_check" check ("method" in ('BALANCE', 'EXTERNAL'));`,
    );
    this.addSql(
      `alter table "payment" add constraint "payment_state_check" check ("state" in ('PENDING', 'COMPLETED', 'FAILED', 'REFUNDED'));`,
    );

    this.addSql(
      `alter table "payment_event" add constraint "payment_event_state_check" check ("state" in ('PENDING', 'COMPLETED', 'FAILED', 'REFUNDED'));`,
    );

    this.addSql(
      `alter table "variant" add constraint "variant_product_id_foreign" foreign key ("product_id") references "product" ("id");`,
    );
    this.addSql(`alter table "variant" add constraint "variant_stock_check" check (stock >= 0);`);
    this.addSql(`alter table "variant" add constraint "variant_price_check" check (price >= 0);`);

    this.addSql(`alter table "wallet" add constraint "wallet_balance_check" check (balance >= 0);`);

    // The projection moves this row on; there is one from the start, so that replicas need not race to make it.
    this.addSql(
      `insert into "ranking_position" ("name", "xid", "event_id") values ('sales', '0', '00000000-0000-0000-0000-000000000000');`,
    );
  }

  override down(): void | Promise<void> {
    this.addSql(`alter table "cart_item" drop constraint "cart_item_user_id_foreign";`);
    this.addSql(`alter table "order_line" drop constraint "order_line_order_id_foreign";`);
    this.addSql(`alter table "variant" drop constraint "variant_product_id_foreign";`);

    this.addSql(`drop table if exists "idempotency" cascade;`);
    this.addSql(`drop table if exists "cart" cascade;`);
    this.addSql(`drop table if exists "cart_item" cascade;`);
    this.addSql(`drop table if exists "coupon" cascade;`);
    this.addSql(`drop table if exists "event" cascade;`);
    this.addSql(`drop table if exists "issued_coupon" cascade;`);
    this.addSql(`drop table if exists "ledger_entry" cascade;`);
    this.addSql(`drop table if exists "shop_order" cascade;`);
    this.addSql(`drop table if exists "order_line" cascade;`);
    this.addSql(`drop table if exists "payment" cascade;`);
    this.addSql(`drop table if exists "payment_event" cascade;`);
    this.addSql(`drop table if exists "product" cascade;`);
    this.addSql(`drop table if exists "ranking_bucket" cascade;`);
    this.addSql(`drop table if exists "ranking_position" cascade;`);
    this.addSql(`drop table if exists "shop_user" cascade;`);
    this.addSql(`drop table if exists "variant" cascade;`);
    this.addSql(`drop table if exists "wallet" cascade;`);
  }
}
