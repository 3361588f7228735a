import { Migration } from "@mikro-orm/migrations";

export class Migration20261126074145_ranked_events extends Migration {
  override name = "Migration20261126074145_ranked_events";

  override up(): void | Promise<void> {
    this.addSql(
      `create index "event_ranked_index" on "event" ("xid", "id") where type in ('order.paid', 'order.cancelled');`,
    );
  }

  override down(): void | Promise<void> {
    this.addSql(`drop index "event_ranked_index";`);
  }
}
