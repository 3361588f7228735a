import { Migration } from "@mikro-orm/migrations";

export class Migration20261127030000_event_readers extends Migration {
  override name = "Migration20261127030000_event_readers";

  override up(): void | Promise<void> {
    this.addSql(
      `create table "event_reader" ("name" varchar(50) not null, "owner" uuid null, "lease_end" timestamptz null, "xid" xid8 not null, "event_id" uuid not null, primary key ("name"));`,
    );
    this.addSql(
      `create table "event_undelivered" ("aggregateid" varchar(64) not null, "event_id" uuid not null, "aggregatetype" varchar(50) not null, "xid" xid8 not null, "attempts" int not null, "retry_time" timestamptz not null, "dead" boolean not null, "last_error" varchar(500) not null, primary key ("aggregateid", "event_id"));`,
    );
    this.addSql(
      `create index "event_undelivered_aggregateid_aggregatetype_xid_event_id_index" on "event_undelivered" ("aggregateid", "aggregatetype", "xid", "event_id");`,
    );
    this.addSql(`create index "event_undelivered_due_index" on "event_undelivered" ("retry_time") where not dead;`);

    // Each has its row from the start, so that replicas need not race to make it.
    this.addSql(
      `insert into "event_reader" ("name", "xid", "event_id") select "name", "xid", "event_id" from "ranking_position";`,
    );
    this.addSql(
      `insert into "event_reader" ("name", "xid", "event_id") values ('sink', '0', '00000000-0000-0000-0000-000000000000');`,
    );
    this.addSql(`drop table "ranking_position";`);
  }

  override down(): void | Promise<void> {
    this.addSql(
      `create table "ranking_position" ("name" varchar(50) not null, "xid" xid8 not null, "event_id" uuid not null, primary key ("name"));`,
    );
    this.addSql(
      `insert into "ranking_position" ("name", "xid", "event_id") select "name", "xid", "event_id" from "event_reader" where "name" = 'sales';`,
    );
    this.addSql(`drop table "event_undelivered";`);
    this.addSql(`drop table "event_reader";`);
  }
}
