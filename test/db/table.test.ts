/** Every type of column, there and back, with values that are hard to write into an array literal. */
import { randomUUIDv7 } from "node:crypto";
import { defineEntity, p } from "@mikro-orm/core";
import fc from "fast-check";
import { beforeAll, describe, expect, onTestFinished, test } from "vitest";
import { entities } from "../../src/app.ts";
import { touch } from "../../src/db/command.ts";
import { Database } from "../../src/db/database.ts";
import { createOrm } from "../../src/db/orm.ts";
import { Table } from "../../src/db/table.ts";
import { createDatabase } from "../support/database.ts";
import { connect } from "./harness.ts";

const url = await createDatabase();

const schema = defineEntity({
  name: "Sample",
  tableName: "sample",
  properties: {
    id: p.uuid().primary(),
    name: p.string().length(200).primary(),
    text: p.text().strictNullable(),
    kind: p.enum(["A", 'B,"{}\\']).strictNullable(),
    small: p.integer().strictNullable(),
    large: p.bigint().strictNullable(),
    time: p.datetime().strictNullable(),
    bytes: p.blob().strictNullable(),
    json: p.json<unknown>().strictNullable(),
    ref: p.uuid().strictNullable(),
    version: p.integer().version(),
  },
});
class Sample extends schema.class {}
schema.setClass(Sample);

type Values = Partial<Omit<Sample, "id" | "version">>;

async function openSamples() {
  const orm = await createOrm({ url, poolSize: 2, entities: [Sample] });
  onTestFinished(() => orm.close());
  return { db: await Database.open(orm), orm };
}

const sampleOf = (values: Values) => {
  const nothing = { text: null, kind: null, small: null, large: null, time: null, bytes: null, json: null, ref: null };
  return Object.assign(new Sample(), { id: randomUUIDv7(), name: "", ...nothing, ...values });
};

const texts = [
  "",
  " ",
  "NULL",
  "null",
  '"',
  '""',
  "\\",
  '\\"',
  "{}",
  "{a,b}",
  "a,b",
  "'",
  "it's; drop table sample --",
  "\n\r\t\b\f\v",
  "\u0001\u001f\u007f",
  "$1",
  "\\x00",
  "\\N",
  "한국어 é 👩‍👩‍👧 \u{10ffff} \u202e",
  "e\u0301",
  "x".repeat(100_000),
];
const jsons = [
  ...[{}, [], { a: null }, [null], 0, -1.5, 1e300, true, false, "", "null", '"', "a\"b\\c{},'"],
  { 'k"ey,{}\\': ['v"al', { deep: ["\\", "\n", "👍"] }], empty: "", NULL: "NULL" },
];
const times = [
  "1970-01-01T00:00:00.000Z",
  "2026-02-28T23:59:59.999Z",
  "9999-12-31T23:59:59.999Z",
  "0001-01-01T00:00:00.000Z",
];
const larges = [0n, -1n, 2n ** 53n + 1n, 2n ** 63n - 1n, -(2n ** 63n)];
const smalls = [0, -1, 2 ** 31 - 1, -(2 ** 31)];
const bytes = [
  Buffer.alloc(0),
  Buffer.from(Array.from({ length: 256 }, (_, byte) => byte)),
  Buffer.from('\\x{},"NULL'),
];

beforeAll(async () => {
  const orm = await createOrm({ url, poolSize: 1, entities: [Sample] });
  await orm.schema.execute(
    (await orm.schema.getUpdateSchemaSQL({ safe: true }))
      .split(";\n")
      .filter((sql) => sql.includes('"sample"'))
      .join(";\n"),
  );
  await orm.close();
});

/** Stores rows in one batch and returns them as a decision loads them, and as a plain read does. */
async function roundTrip(db: Database, values: readonly Values[]): Promise<void> {
  const rows = values.map(sampleOf);
  await db.apply({ touches: [], decide: (tx) => rows.forEach((row) => void tx.add(row)) });
  const written = rows.map((row) => ({ ...row, version: 1 }));
  const loaded = await db.apply({
    touches: rows.map(({ id, name }) => touch(Sample, { id, name })),
    decide: (tx) => rows.map(({ id, name }) => ({ ...tx.find(Sample, { id, name }) })),
  });
  expect(loaded).toEqual(written);
  const read = await Promise.all(rows.map(({ id }) => db.find(Sample, { id })));
  expect(read.map((row) => ({ ...row }))).toEqual(written);
  // Nothing has changed by being loaded: no update was written.
  expect(read.every((row) => row?.version === 1)).toBe(true);
}

describe("a value comes back as it was written", () => {
  const columns: Record<string, readonly Values[]> = {
    text: texts.map((text) => ({ text })),
    "text in a key": texts.filter((text) => text.length <= 200).map((name) => ({ name })),
    enum: [{ kind: "A" }, { kind: 'B,"{}\\' }],
    int: smalls.map((small) => ({ small })),
    bigint: larges.map((large) => ({ large })),
    timestamptz: times.map((time) => ({ time: new Date(time) })),
    bytea: bytes.map((value) => ({ bytes: value })),
    jsonb: jsons.map((json) => ({ json })),
    uuid: [{ ref: "00000000-0000-0000-0000-000000000000" }, { ref: randomUUIDv7() }],
  };
  test.each(Object.entries(columns))("%s", async (_, values) => {
    const { db } = await openSamples();
    // Nothing among them, and nothing at all: NULL beside values, and alone.
    await roundTrip(db, [{}, ...values, {}]);
    await roundTrip(db, [{}]);
    for (const value of values) await roundTrip(db, [value]);
  });

  test("whatever is in it", async () => {
    const { db } = await openSamples();
    const text = fc.string({ unit: "binary", maxLength: 200 }).map((value) => value.replaceAll("\0", ""));
    const json = fc
      .jsonValue({ stringUnit: "binary" })
      .map((value) => JSON.parse(JSON.stringify(value)))
      .filter((value) => value !== null && !JSON.stringify(value).includes("\\u0000"));
    const row = fc.record(
      {
        name: text.filter((value) => [...value].length <= 200),
        text,
        small: fc.integer({ min: -(2 ** 31), max: 2 ** 31 - 1 }),
        large: fc.bigInt({ min: -(2n ** 63n), max: 2n ** 63n - 1n }),
        time: fc.date({
          min: new Date("0001-01-01T00:00:00Z"),
          max: new Date("9999-12-31T23:59:59Z"),
          noInvalidDate: true,
        }),
        bytes: fc.uint8Array({ maxLength: 300 }).map((value) => Buffer.from(value)),
        json,
      },
      { requiredKeys: ["name"] },
    );
    await fc.assert(
      fc.asyncProperty(fc.array(row, { minLength: 1, maxLength: 20 }), (rows) => roundTrip(db, rows)),
      { numRuns: 30 },
    );
  });
});

describe("an update", () => {
  test("of different columns in one statement leaves each row's others alone", async () => {
    const { db } = await openSamples();
    const rows = [
      sampleOf({ name: "0", text: "a", small: 1 }),
      sampleOf({ name: "1", text: "b", small: 2 }),
      sampleOf({ name: "2", text: null, small: null }),
      sampleOf({ name: "3", text: "d" }),
    ];
    await db.apply({ touches: [], decide: (tx) => rows.forEach((row) => void tx.add(row)) });
    await Promise.all(
      rows.map(({ id, name }, index) =>
        db.apply({
          touches: [touch(Sample, { id, name })],
          decide: (tx) => {
            const row = tx.find(Sample, { id, name });
            if (row && index === 0) row.text = 'new "text", {}';
            if (row && index === 1) row.small = null;
            if (row && index === 2) Object.assign(row, { large: 5n, json: { a: ["b"] } });
          },
        }),
      ),
    );
    const client = await connect(url);
    const stored = await client.query(
      "select text, small, large, json, version from sample where id = any ($1) order by name",
      [rows.map(({ id }) => id)],
    );
    expect(stored.rows).toEqual([
      { text: 'new "text", {}', small: 1, large: null, json: null, version: 2 },
      { text: "b", small: null, large: null, json: null, version: 2 },
      { text: null, small: null, large: "5", json: { a: ["b"] }, version: 2 },
      { text: "d", small: null, large: null, json: null, version: 1 },
    ]);
  });

  test("that changes nothing in the end is written when two commands have changed it, since both relied on it", async () => {
    const { db } = await openSamples();
    const { id, name } = sampleOf({});
    await db.apply({
      touches: [],
      decide: (tx) => tx.add(Object.assign(sampleOf({ small: 1, json: { a: 1 } }), { id, name })),
    });
    const add = (...deltas: number[]) =>
      db.apply({
        touches: [touch(Sample, { id, name })],
        decide: (tx) => {
          const row = tx.find(Sample, { id, name });
          for (const delta of deltas) if (row) row.small = Number(row.small) + delta;
        },
      });
    await add(1, -1);
    expect(await db.find(Sample, { id })).toMatchObject({ small: 1, version: 1 });
    await Promise.all([add(1), add(-1)]);
    expect(await db.find(Sample, { id })).toMatchObject({ small: 1, version: 2 });
  });

  test("of a row that is gone fails instead of passing by", async () => {
    const { orm } = await openSamples();
    const table = new Table(orm.getMetadata().get(Sample));
    const { name, text, values } = table.update(["text"], [{ ...sampleOf({ text: "x" }), version: 1 }]);
    const update = (await connect(url)).query({ name, text, values: [...values] });
    await expect(update).rejects.toMatchObject({ code: "22012" });
  });
});

test("a statement has one name, and a name one statement", async () => {
  const { orm } = await openSamples();
  const full = await createOrm({ url, poolSize: 1, entities });
  onTestFinished(() => full.close());
  const texts = new Map<string, string>();
  for (const meta of [
    orm.getMetadata().get(Sample),
    ...entities.map((entity) => full.getMetadata().get(entity as never)),
  ]) {
    const table = new Table(meta);
    const properties = meta.props.filter((prop) => prop.hydrate !== false).map((prop) => prop.name);
    const row = Object.fromEntries(properties.map((property) => [property, null]));
    const uses = [...Table.insert([{ table, rows: [row] }]), table.delete([row])];
    for (const first of properties) {
      uses.push(table.select([first], [row]), table.lock([first], row), table.update([first], [row]));
      for (const second of properties) {
        if (first !== second) uses.push(table.select([first, second], [row]), table.update([first, second], [row]));
      }
    }
    for (const { name, text } of uses) {
      expect(texts.get(name) ?? text).toBe(text);
      expect(name.length).toBeLessThan(64);
      texts.set(name, text);
    }
    expect(table.select([properties[0] as string], [row]).name).toBe(
      table.select([properties[0] as string], [row, row]).name,
    );
  }
  expect(texts.size).toBe(new Set(texts.values()).size);
});

test("new rows of several tables get a statement together when they often come so, and as many as a connection keeps", async () => {
  const orm = await createOrm({ url, poolSize: 1, entities });
  onTestFinished(() => orm.close());
  const tables = entities.slice(0, 9).map((entity) => new Table(orm.getMetadata().get(entity as never)));
  const combinations = Array.from({ length: 2 ** tables.length - 1 }, (_, bits) =>
    tables.filter((_table, index) => ((bits + 1) >> index) & 1).map((table) => ({ table, rows: [] })),
  );
  const several = combinations.filter(({ length }) => length > 1);
  const names = new Set<string>();
  for (let round = 0; round < 30; round += 1) {
    for (const parts of combinations) for (const { name } of Table.insert(parts)) names.add(name);
  }
  expect(names.size).toBeLessThanOrEqual(64);
  const lengths = several.map((parts) => Table.insert(parts).length);
  expect(lengths.filter((length) => length === 1).length).toBeGreaterThan(40);
  const apart = several.find((parts) => Table.insert(parts).length > 1) ?? [];
  expect(Table.insert(apart)).toEqual(apart.flatMap((part) => Table.insert([part])));
});
