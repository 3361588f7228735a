/**
 * Values of columns, from and to Postgres. Parameters are arrays, one for a column, in the binary format (array_send and
 * the send functions of the element types in Postgres' source): as text they took Postgres a fifth of all it does for a batch.
 */

/** How values of a type are written and read. */
export type Codec = Readonly<{
  /** Of the type, in pg_type. */
  oid: number;
  /** What is written: the value itself or something made of it once. */
  prepare: (value: unknown) => unknown;
  /** Bytes that it takes. */
  size: (prepared: unknown) => number;
  write: (bytes: Buffer, prepared: unknown, at: number) => void;
  fromDatabase: (value: unknown) => unknown;
  /** The same text for the same value. */
  toText: (value: unknown) => string;
}>;

const same = (value: unknown): unknown => value;

/** 2000-01-01, from which Postgres counts, in milliseconds. */
const POSTGRES_EPOCH = 946_684_800_000;
/** Version of the binary format of jsonb. */
const JSONB = 1;

function writeUuid(bytes: Buffer, uuid: unknown, at: number): void {
  const hex = (uuid as string).replaceAll("-", "");
  if (hex.length !== 32 || bytes.write(hex, at, "hex") !== 16) throw new RangeError(`${uuid} is not a UUID`);
}

function writeTime(bytes: Buffer, time: unknown, at: number): void {
  bytes.writeBigInt64BE(BigInt((time as Date).getTime() - POSTGRES_EPOCH) * 1_000n, at);
}

const text: Codec = {
  oid: 25,
  prepare: same,
  size: (value) => Buffer.byteLength(value as string),
  write: (bytes, value, at) => void bytes.write(value as string, at),
  fromDatabase: same,
  toText: (value) => value as string,
};

const codecs: Readonly<Record<string, Codec>> = {
  text,
  uuid: { ...text, oid: 2950, size: () => 16, write: writeUuid },
  int: {
    ...{ oid: 23, prepare: same, size: () => 4, fromDatabase: same, toText: String },
    write: (bytes, value, at) => void bytes.writeInt32BE(Number(value), at),
  },
  bigint: {
    ...{ oid: 20, prepare: (value) => BigInt(value as bigint), size: () => 8, toText: String },
    write: (bytes, value, at) => void bytes.writeBigInt64BE(value as bigint, at),
    // The driver gives them as strings.
    fromDatabase: (value) => BigInt(value as string),
  },
  timestamptz: {
    ...{ oid: 1184, prepare: same, size: () => 8, write: writeTime, fromDatabase: same },
    toText: (value) => String((value as Date).getTime()),
  },
  jsonb: {
    ...{ oid: 3802, prepare: (value) => JSON.stringify(value), size: (json) => 1 + Buffer.byteLength(json as string) },
    write: (bytes, json, at) => void bytes.write(json as string, bytes.writeInt8(JSONB, at)),
    fromDatabase: same,
    toText: (value) => JSON.stringify(value),
  },
  bytea: {
    ...{ oid: 17, prepare: same, size: (value) => (value as Uint8Array).length, fromDatabase: same },
    write: (bytes, value, at) => bytes.set(value as Uint8Array, at),
    toText: (value) => Buffer.from(value as Uint8Array).toString("hex"),
  },
};

/** By the name of the type; a type that is not listed is text. */
export function codecOf(type: string): Codec {
  return codecs[type] ?? text;
}

const isNull = (value: unknown): boolean => value === null || value === undefined;

/** Dimensions, whether there are nulls, type of the elements, their number, the first index. */
const HEADER = 20;
const LENGTH = 4;

/** The values as an array with one dimension. @throws RangeError for a value that the type does not hold */
export function arrayOf(codec: Codec, values: readonly unknown[]): Buffer {
  const elements = values.map((value) => (isNull(value) ? null : codec.prepare(value)));
  let size = HEADER;
  for (const element of elements) size += LENGTH + (element === null ? 0 : codec.size(element));
  const bytes = Buffer.allocUnsafe(size);
  bytes.writeInt32BE(1, 0);
  bytes.writeInt32BE(elements.includes(null) ? 1 : 0, 4);
  bytes.writeInt32BE(codec.oid, 8);
  bytes.writeInt32BE(elements.length, 12);
  bytes.writeInt32BE(1, 16);
  let at = HEADER;
  for (const element of elements) {
    const length = element === null ? 0 : codec.size(element);
    at = bytes.writeInt32BE(element === null ? -1 : length, at);
    if (element !== null) codec.write(bytes, element, at);
    at += length;
  }
  return bytes;
}
