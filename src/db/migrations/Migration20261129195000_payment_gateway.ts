import { Migration } from "@mikro-orm/migrations";

export class Migration20261129195000_payment_gateway extends Migration {
  override name = "Migration20261129195000_payment_gateway";

  override up(): void | Promise<void> {
    this.addSql(`alter table "payment" add "gateway" varchar(50) null;`);
  }

  override down(): void | Promise<void> {
    this.addSql(`alter table "payment" drop column "gateway";`);
  }
}
