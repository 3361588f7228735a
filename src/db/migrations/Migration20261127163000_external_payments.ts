import { Migration } from "@mikro-orm/migrations";

const states = (more: string) => `check ("state" in ('PENDING', 'COMPLETED', 'FAILED', 'REFUNDED'${more}))`;

export class Migration20261127163000_external_payments extends Migration {
  override name = "Migration20261127163000_external_payments";

  override up(): void | Promise<void> {
    this.addSql(`alter table "payment" drop constraint "payment_state_check";`);
    this.addSql(
      `alter table "payment" add "tries" int not null default 0, add "next_try_time" timestamptz null, add constraint "payment_state_check" ${states(", 'REFUNDING'")};`,
    );
    this.addSql(
      `create index "payment_unsettled_index" on "payment" ("next_try_time") where state in ('PENDING', 'REFUNDING');`,
    );
    this.addSql(`create unique index "payment_pending_once" on "payment" ("order_id") where state = 'PENDING';`);
    this.addSql(`alter table "payment_event" drop constraint "payment_event_state_check";`);
    this.addSql(
      `alter table "payment_event" add "gateway_reference" varchar(255) null, add constraint "payment_event_state_check" ${states(", 'REFUNDING'")};`,
    );
  }

  /** Fails while the gateway has money to give back. */
  override down(): void | Promise<void> {
    this.addSql(`alter table "payment_event" drop constraint "payment_event_state_check";`);
    this.addSql(
      `alter table "payment_event" drop column "gateway_reference", add constraint "payment_event_state_check" ${states("")};`,
    );
    this.addSql(`drop index "payment_pending_once";`);
    this.addSql(`drop index "payment_unsettled_index";`);
    this.addSql(`alter table "payment" drop constraint "payment_state_check";`);
    this.addSql(
      `alter table "payment" drop column "tries", drop column "next_try_time", add constraint "payment_state_check" ${states("")};`,
    );
  }
}
