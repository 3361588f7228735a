import { Migration } from "@mikro-orm/migrations";

export class Migration20261129195000_payment_gateway extends Migration {
  override name = "Migration20261129195000_payment_gateway";

  override up(): void | Promise<void> {
    this.addSql(`create table "payment_gateway" ("name" varchar(50) not null, primary key ("name"));`);
  }

  override down(): void | Promise<void> {
    this.addSql(`drop table "payment_gateway";`);
  }
}
