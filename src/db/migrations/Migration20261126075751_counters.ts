import { Migration } from "@mikro-orm/migrations";

export class Migration20261126075751_counters extends Migration {
  override name = "Migration20261126075751_counters";

  override up(): void | Promise<void> {
    this.addSql(`alter table "cart_item" add "version" int not null default 1;`);

    this.addSql(`alter table "coupon" add "edits" int not null default 0;`);

    this.addSql(`alter table "variant" add "edits" int not null default 0;`);
  }

  override down(): void | Promise<void> {
    this.addSql(`alter table "cart_item" drop column "version";`);

    this.addSql(`alter table "coupon" drop column "edits";`);

    this.addSql(`alter table "variant" drop column "edits";`);
  }
}
