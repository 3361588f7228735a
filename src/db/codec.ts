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
  /** Bytes that it takes, or that each value of the type takes. */
  size: number | ((prepared: unknown) => number);
  /** Returns how many bytes it has written. */
  write: (bytes: Buffer, prepared: unknown, at: number) => number;
  fromDatabase: (value: unknown) => unknown;
  /** The same text for the same value. */
  toText: (value: unknown) => string;
}>;

const same = (value: unknown): unknown => value;

/** 2000-01-01, from which Postgres counts, in milliseconds. */
const POSTGRES_EPOCH = 946_684_800_000;
/** Version of the binary format of jsonb. */
const JSONB = 1;
/** What the upper half of an int8 counts. */
const UPPER = 2 ** 32;

/** By character code; `NONE` where there is no digit. */
const NONE = 255;
const digits = new Uint8Array(128).fill(NONE);
for (const digit of "0123456789abcdefABCDEF") digits[digit.charCodeAt(0)] = Number.parseInt(digit, 16);
const DASH = "-".charCodeAt(0);
const UUID_DIGITS = 32;

/** Digit by digit, which takes half the time of taking the dashes out and `Buffer.write`. */
function writeUuid(bytes: Buffer, uuid: unknown, at: number): number {
  const text = uuid as string;
  let count = 0;
  let upper = 0;
  for (let index = 0; index < text.length; index += 1) {
    const code = text.charCodeAt(index);
    if (code === DASH) continue;
    const digit = digits[code] ?? NONE;
    if (digit === NONE || count === UUID_DIGITS) throw new RangeError(`${text} is not a UUID`);
    if ((count & 1) === 0) upper = digit << 4;
    else bytes[at + (count >> 1)] = upper | digit;
    count += 1;
  }
  if (count !== UUID_DIGITS) throw new RangeError(`${text} is not a UUID`);
  return count >> 1;
}

/** A whole number that a float holds exactly: in halves, since working with a bigint takes longer. */
function writeSafeInt64(bytes: Buffer, value: number, at: number): number {
  const upper = Math.floor(value / UPPER);
  bytes.writeInt32BE(upper, at);
  return bytes.writeUInt32BE(value - upper * UPPER, at + 4) - at;
}

function writeBigInt(bytes: Buffer, value: unknown, at: number): number {
  const number = Number(value);
  if (Number.isSafeInteger(number)) return writeSafeInt64(bytes, number, at);
  return bytes.writeBigInt64BE(BigInt(value as bigint), at) - at;
}

function writeTime(bytes: Buffer, time: unknown, at: number): number {
  const ms = (time as Date).getTime() - POSTGRES_EPOCH;
  if (Number.isSafeInteger(ms * 1_000)) return writeSafeInt64(bytes, ms * 1_000, at);
  return bytes.writeBigInt64BE(BigInt(ms) * 1_000n, at) - at;
}

const text: Codec = {
  oid: 25,
  prepare: same,
  size: (value) => Buffer.byteLength(value as string),
  write: (bytes, value, at) => bytes.write(value as string, at),
  fromDatabase: same,
  toText: (value) => value as string,
};

const codecs: Readonly<Record<string, Codec>> = {
  text,
  uuid: { ...text, oid: 2950, size: 16, write: writeUuid },
  int: {
    ...{ oid: 23, prepare: same, size: 4, fromDatabase: same, toText: String },
    write: (bytes, value, at) => bytes.writeInt32BE(Number(value), at) - at,
  },
  bigint: {
    ...{ oid: 20, prepare: same, size: 8, write: writeBigInt, toText: String },
    // The driver gives them as strings.
    fromDatabase: (value) => BigInt(value as string),
  },
  timestamptz: {
    ...{ oid: 1184, prepare: same, size: 8, write: writeTime, fromDatabase: same },
    toText: (value) => String((value as Date).getTime()),
  },
  jsonb: {
    ...{ oid: 3802, prepare: (value) => JSON.stringify(value), size: (json) => 1 + Buffer.byteLength(json as string) },
    write: (bytes, json, at) => 1 + bytes.write(json as string, bytes.writeInt8(JSONB, at)),
    fromDatabase: same,
    toText: (value) => JSON.stringify(value),
  },
  bytea: {
    ...{ oid: 17, prepare: same, size: (value) => (value as Uint8Array).length, fromDatabase: same },
    write: (bytes, value, at) => {
      bytes.set(value as Uint8Array, at);
      return (value as Uint8Array).length;
    },
    toText: (value) => Buffer.from(value as Uint8Array).toString("hex"),
  },
};

/** By the name of the type; a type that is not listed is text. */
export function codecOf(type: string): Codec {
  return codecs[type] ?? text;
}

/** Dimensions, whether there are nulls, type of the elements, their number, the first index. */
const HEADER = 20;
const LENGTH = 4;
const NULL_LENGTH = -1;

/** What all rows have as that property, as an array with one dimension. @throws RangeError for a value that the type does not hold */
export function arrayOf(
  { oid, prepare, size, write }: Codec,
  rows: readonly Readonly<Record<string, unknown>>[],
  property: string,
): Buffer {
  let total = HEADER + rows.length * LENGTH;
  let nulls = 0;
  const elements = rows.map((row) => {
    const value = row[property];
    if (value === null || value === undefined) {
      nulls = 1;
      return null;
    }
    const element = prepare(value);
    total += typeof size === "number" ? size : size(element);
    return element;
  });
  const bytes = Buffer.allocUnsafe(total);
  bytes.writeInt32BE(1, 0);
  bytes.writeInt32BE(nulls, 4);
  bytes.writeInt32BE(oid, 8);
  bytes.writeInt32BE(rows.length, 12);
  bytes.writeInt32BE(1, 16);
  let at = HEADER;
  for (const element of elements) {
    const length = element === null ? NULL_LENGTH : write(bytes, element, at + LENGTH);
    at = bytes.writeInt32BE(length, at) + Math.max(length, 0);
  }
  return bytes;
}
