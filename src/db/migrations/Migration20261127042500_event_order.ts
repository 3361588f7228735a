import { Migration } from "@mikro-orm/migrations";

export class Migration20261127042500_event_order extends Migration {
  override name = "Migration20261127042500_event_order";

  override up(): void | Promise<void> {
    this.addSql(
      `alter table "event" alter column "xid" set default GREATEST(pg_current_xact_id(), (NULLIF(current_setting('doorbuster.after'::text, true), ''::text))::xid8);`,
    );
    this.addSql(
      `insert into "event_reader" ("name", "xid", "event_id") values ('purged', '0', '00000000-0000-0000-0000-000000000000');`,
    );
  }

  override down(): void | Promise<void> {
    this.addSql(`delete from "event_reader" where "name" = 'purged';`);
    this.addSql(`alter table "event" alter column "xid" set default pg_current_xact_id();`);
  }
}
