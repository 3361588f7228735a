/** The connector that docs/EVENTS.md shows: Debezium knows each of its properties, and the table has what it reads. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { Event, eventTypes } from "../../src/outbox/event.entity.ts";
import { connect, open } from "../db/harness.ts";
import { createDatabase } from "../support/database.ts";

const words = (text: string): ReadonlySet<string> => new Set(text.trim().split(/\s+/));

/**
 * Those that the documentation of Debezium 2.7 and 3.6 both describe:
 * https://debezium.io/documentation/reference/2.7/connectors/postgresql.html#postgresql-connector-properties
 * https://debezium.io/documentation/reference/3.6/connectors/postgresql.html#postgresql-connector-properties
 */
const CONNECTOR = words(`
  binary.handling.mode column.exclude.list column.include.list column.propagate.source.type connector.class converters
  custom.metric.tags database.dbname database.hostname database.initial.statements database.password database.port
  database.query.timeout.ms database.sslcert database.sslkey database.sslmode database.sslpassword database.sslrootcert
  database.tcpKeepAlive database.user datatype.propagate.source.type decimal.handling.mode errors.max.retries
  event.processing.failure.handling.mode field.name.adjustment.mode flush.lsn.source heartbeat.action.query
  heartbeat.interval.ms hstore.handling.mode include.unknown.datatypes incremental.snapshot.chunk.size
  incremental.snapshot.watermarking.strategy interval.handling.mode max.batch.size max.queue.size
  max.queue.size.in.bytes message.key.columns message.prefix.exclude.list message.prefix.include.list
  money.fraction.digits name notification.enabled.channels plugin.name poll.interval.ms provide.transaction.metadata
  publication.autocreate.mode publication.name read.only replica.identity.autoset.values
  retriable.restart.connector.wait.ms schema.exclude.list schema.include.list schema.name.adjustment.mode
  schema.refresh.mode signal.data.collection signal.enabled.channels skip.messages.without.change skipped.operations
  slot.drop.on.stop slot.max.retries slot.name slot.retry.delay.ms slot.stream.params snapshot.delay.ms
  snapshot.fetch.size snapshot.include.collection.list snapshot.lock.timeout.ms snapshot.locking.mode
  snapshot.locking.mode.custom.name snapshot.max.threads snapshot.mode
  snapshot.mode.configuration.based.snapshot.data snapshot.mode.configuration.based.snapshot.on.data.error
  snapshot.mode.configuration.based.snapshot.on.schema.error snapshot.mode.configuration.based.snapshot.schema
  snapshot.mode.configuration.based.start.stream snapshot.mode.custom.name snapshot.query.mode
  snapshot.query.mode.custom.name snapshot.select.statement.overrides status.update.interval.ms streaming.delay.ms
  table.exclude.list table.include.list tasks.max time.precision.mode tombstones.on.delete topic.cache.size
  topic.delimiter topic.heartbeat.prefix topic.naming.strategy topic.prefix topic.transaction
  unavailable.value.placeholder xmin.fetch.interval.ms`);

/**
 * https://debezium.io/documentation/reference/2.7/transformations/outbox-event-router.html#outbox-event-router-configuration-options
 * https://debezium.io/documentation/reference/3.6/transformations/outbox-event-router.html#outbox-event-router-configuration-options
 */
const ROUTER = words(`
  type route.by.field route.tombstone.on.empty.payload route.topic.regex route.topic.replacement
  table.expand.json.payload table.field.event.id table.field.event.key table.field.event.payload
  table.field.event.schema.version table.field.event.timestamp table.fields.additional.placement
  table.json.payload.null.behavior table.op.invalid.behavior tracing.operation.name tracing.span.context.field
  tracing.with.context.field.only`);

/**
 * Of each connector, and what its converters are given.
 * https://kafka.apache.org/documentation/#sourceconnectconfigs
 * https://docs.lenses.io/latest/connectors/tutorials/sink-converters-and-different-data-formats
 */
const CONNECT = words(`
  transforms key.converter value.converter header.converter key.converter.schemas.enable
  value.converter.schemas.enable`);

/** Without one of these the connector does not start, or does not find the table, its events or their types. */
const REQUIRED = words(`
  connector.class plugin.name database.hostname database.port database.user database.password database.dbname
  topic.prefix table.include.list transforms transforms.outbox.type
  transforms.outbox.table.fields.additional.placement key.converter value.converter`);

/** What the router reads when nothing else is said. */
const DEFAULT_COLUMNS = ["id", "aggregatetype", "aggregateid", "payload"];
const TRANSFORM = "transforms.outbox.";

const docs = readFileSync(join(import.meta.dirname, "../../docs/EVENTS.md"), "utf8");

/** The one block of JSON that is a connector. */
function connector(): { name: string; config: Record<string, string> } {
  const blocks = [...docs.matchAll(/```json\n([\s\S]*?)```/g)].map(([, text = ""]) => JSON.parse(text));
  const found = blocks.filter((block) => "config" in block);
  expect(found).toHaveLength(1);
  return found[0];
}

const { config } = connector();
/** As pairs of a column and where it goes, or triples with its name there. */
const additional = (config[`${TRANSFORM}table.fields.additional.placement`] ?? "")
  .split(",")
  .map((one) => one.split(":"));

describe("the connector for Debezium", () => {
  test("has no property that Debezium or Kafka Connect do not know, and only strings", () => {
    const unknown = Object.keys(config).filter((name) =>
      name.startsWith(TRANSFORM)
        ? !ROUTER.has(name.slice(TRANSFORM.length))
        : !CONNECTOR.has(name) && !CONNECT.has(name),
    );
    expect(unknown).toEqual([]);
    expect(Object.values(config).filter((value) => typeof value !== "string")).toEqual([]);
    expect(config.transforms).toBe("outbox");
  });

  test("has each property that it needs, and hands on the type of an event", () => {
    expect([...REQUIRED].filter((name) => !config[name])).toEqual([]);
    expect(additional.map(([column]) => column)).toContain("type");
  });

  test("makes the aggregate's id the key as it is, and publishes no other table", () => {
    expect(config).toMatchObject({
      "connector.class": "io.debezium.connector.postgresql.PostgresConnector",
      "plugin.name": "pgoutput",
      "publication.autocreate.mode": "filtered",
      "key.converter": "org.apache.kafka.connect.storage.StringConverter",
      "value.converter": "org.apache.kafka.connect.json.JsonConverter",
      [`${TRANSFORM}type`]: "io.debezium.transforms.outbox.EventRouter",
    });
  });

  test("reads a table and columns that there are", async () => {
    const url = await createDatabase();
    const client = await connect(url);
    const [schema, table] = (config["table.include.list"] ?? "").split(".");
    const { rows } = await client.query<{ name: string; type: string }>(
      "select column_name as name, data_type as type from information_schema.columns where table_schema = $1 and table_name = $2",
      [schema, table],
    );
    const types = new Map(rows.map(({ name, type }) => [name, type]));
    const fields = Object.entries(config).filter(([name]) =>
      /^transforms\.outbox\.(table\.field\.event|route\.by)\./.test(name),
    );
    const columns = [
      ...DEFAULT_COLUMNS,
      ...fields.map(([, column]) => column),
      ...additional.map(([column]) => column),
    ];
    expect(columns.filter((column) => !types.has(column as string))).toEqual([]);
    expect(types.get("payload")).toBe("jsonb");
    const { db } = await open(url);
    const stored = await db.read(async (em) => em.getMetadata().get(Event));
    expect(stored.tableName).toBe(table);
    expect(stored.props.flatMap(({ fieldNames }) => fieldNames)).toEqual(expect.arrayContaining(columns));
  });

  test("puts additional columns where they can be", () => {
    for (const [column, place, alias] of additional) {
      expect([column, place, alias]).toEqual([
        expect.stringMatching(/^\w+$/),
        expect.stringMatching(/^(header|envelope)$/),
        alias === undefined ? undefined : expect.stringMatching(/^[\w-]+$/),
      ]);
    }
  });

  test("fills the topics that the page names, by the aggregates that events are of", () => {
    const kinds = [...new Set(eventTypes.map((type) => type.slice(0, type.indexOf("."))))];
    const named = [...docs.matchAll(/`outbox\.event\.(\w+)`/g)].map(([, kind]) => kind);
    expect(named.toSorted()).toEqual(kinds.toSorted());
  });
});
