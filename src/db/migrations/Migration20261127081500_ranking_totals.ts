import { Migration } from "@mikro-orm/migrations";

export class Migration20261127081500_ranking_totals extends Migration {
  override name = "Migration20261127081500_ranking_totals";

  override up(): void | Promise<void> {
    this.addSql(
      `create table "ranking_window" ("days" int not null, "by_variant" boolean not null, "since" timestamptz not null, "asked_time" timestamptz not null, primary key ("days", "by_variant"));`,
    );
    this.addSql(
      `create table "ranking_total" ("days" int not null, "by_variant" boolean not null, "id" uuid not null, "units" bigint not null, primary key ("days", "by_variant", "id"));`,
    );
    this.addSql(
      `create index "ranking_total_top_index" on "ranking_total" ("days", "by_variant", "units" DESC, "id");`,
    );
  }

  override down(): void | Promise<void> {
    this.addSql(`drop table if exists "ranking_total";`);
    this.addSql(`drop table if exists "ranking_window";`);
  }
}
