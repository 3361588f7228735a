import { Migration } from "@mikro-orm/migrations";

export class Migration20261127170500_order_lines extends Migration {
  override name = "Migration20261127170500_order_lines";

  override up(): void | Promise<void> {
    this.addSql(`alter table "order_line" drop constraint "order_line_order_id_foreign";`);
  }

  override down(): void | Promise<void> {
    this.addSql(
      `alter table "order_line" add constraint "order_line_order_id_foreign" foreign key ("order_id") references "shop_order" ("id");`,
    );
  }
}
