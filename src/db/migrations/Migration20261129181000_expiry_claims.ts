import { Migration } from "@mikro-orm/migrations";

export class Migration20261129181000_expiry_claims extends Migration {
  override name = "Migration20261129181000_expiry_claims";

  override up(): void | Promise<void> {
    this.addSql(
      `alter table "shop_order" add "expire_tries" int not null default 0, add "next_expire_time" timestamptz null;`,
    );
    this.addSql(`drop index "shop_order_pending_index";`);
    this.addSql(
      `create index "shop_order_pending_index" on "shop_order" ("expire_time") where state = 'PENDING_PAYMENT' and next_expire_time is null;`,
    );
    this.addSql(
      `create index "shop_order_claimed_index" on "shop_order" ("next_expire_time") where state = 'PENDING_PAYMENT' and next_expire_time is not null;`,
    );
  }

  override down(): void | Promise<void> {
    this.addSql(`drop index "shop_order_claimed_index";`);
    this.addSql(`drop index "shop_order_pending_index";`);
    this.addSql(
      `create index "shop_order_pending_index" on "shop_order" ("expire_time") where state = 'PENDING_PAYMENT';`,
    );
    this.addSql(`alter table "shop_order" drop column "expire_tries", drop column "next_expire_time";`);
  }
}
