import { Migration } from "@mikro-orm/migrations";

export class Migration20261129180000_supplied extends Migration {
  override name = "Migration20261129180000_supplied";

  override up(): void | Promise<void> {
    // From here on nobody sells: what is counted below is all that was sold out of these stocks.
    this.addSql(`alter table "variant" add "supplied" bigint null;`);
    this.addSql(
      `update "variant" v set "supplied" = v."stock" + coalesce(s."units", 0) from "variant" all_v left join (select l."variant_id", sum(l."quantity" - l."returned") as "units" from "order_line" l join "shop_order" o on o."id" = l."order_id" where o."state" in ('PENDING_PAYMENT', 'PAID') group by l."variant_id") s on s."variant_id" = all_v."id" where all_v."id" = v."id";`,
    );
    this.addSql(`alter table "variant" alter column "supplied" set not null;`);
  }

  override down(): void | Promise<void> {
    this.addSql(`alter table "variant" drop column "supplied";`);
  }
}
