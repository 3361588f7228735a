/**
 * Messages in the binary format, byte for byte as the library's `toBinary` writes them, with one buffer for all of them:
 * the library takes a new one for each message, and larger ones while that grows, outside of the heap. With the collecting
 * that was a sixth of the processor time of a Checkout.
 */
import { type DescField, type DescMessage, type Message, type MessageShape, ScalarType } from "@bufbuild/protobuf";
import { BinaryWriter, WireType } from "@bufbuild/protobuf/wire";
import { Edition, FeatureSet_FieldPresence as FieldPresence, isWrapperDesc } from "@bufbuild/protobuf/wkt";

type Values = Message & Readonly<Record<string, unknown>>;
/** Writes a message, or a field of it if that is set. */
type WriteMessage = (message: Values) => void;
/** Writes a value behind its tag. */
type WriteValue = (value: unknown) => void;
type Scalar = Readonly<{ wireType: WireType; zero: unknown; write: (value: never) => void }>;

/** It keeps its buffer. */
const writer = new BinaryWriter();

/** The types that the contract has. */
const scalars: Partial<Record<ScalarType, Scalar>> = {
  [ScalarType.STRING]: { wireType: WireType.LengthDelimited, zero: "", write: (text: string) => writer.string(text) },
  [ScalarType.INT32]: { wireType: WireType.Varint, zero: 0, write: (value: number) => writer.int32(value) },
  [ScalarType.INT64]: { wireType: WireType.Varint, zero: 0n, write: (value: bigint) => writer.int64(value) },
  [ScalarType.BOOL]: { wireType: WireType.Varint, zero: false, write: (value: boolean) => writer.bool(value) },
};

const known = new Map<DescMessage, WriteMessage>();

function messageWriter(desc: DescMessage): WriteMessage {
  let write = known.get(desc);
  if (!write) {
    if (desc.file.edition !== Edition.EDITION_PROTO3 || isWrapperDesc(desc))
      throw new TypeError(`${desc} is not written`);
    const fields = desc.fields.toSorted((a, b) => a.number - b.number).map(fieldWriter);
    write = (message) => {
      for (const field of fields) field(message);
      const { $unknown: unknown } = message;
      if (unknown) for (const { no, wireType, data } of unknown) writer.tag(no, wireType).raw(data);
    };
    known.set(desc, write);
  }
  return write;
}

function scalarOf(field: DescField): Scalar {
  const type = field.enum ? ScalarType.INT32 : field.scalar;
  const scalar = type && scalars[type];
  if (!scalar || field.fieldKind === "map" || (field.fieldKind === "list" && field.packed)) {
    throw new TypeError(`${field} is not written`);
  }
  return scalar;
}

function valueWriter(field: DescField): WriteValue {
  const tag = (wireType: WireType) => ((field.number << 3) | wireType) >>> 0;
  if (field.fieldKind !== "map" && field.message) {
    const head = tag(WireType.LengthDelimited);
    const write = messageWriter(field.message);
    return (value) => {
      writer.uint32(head).fork();
      write(value as Values);
      writer.join();
    };
  }
  const { wireType, write } = scalarOf(field);
  const head = tag(wireType);
  return (value) => {
    writer.uint32(head);
    write(value as never);
  };
}

function fieldWriter(field: DescField): WriteMessage {
  const { localName, oneof } = field;
  const write = valueWriter(field);
  if (field.fieldKind === "list") {
    return (message) => {
      for (const value of message[localName] as readonly unknown[]) write(value);
    };
  }
  if (oneof) {
    return (message) => {
      const chosen = message[oneof.localName] as { case?: string; value?: unknown };
      if (chosen.case === localName) write(chosen.value);
    };
  }
  const zero = field.presence === FieldPresence.IMPLICIT ? scalarOf(field).zero : undefined;
  return (message) => {
    const value = message[localName];
    if (value !== undefined && value !== zero) write(value);
  };
}

/** @throws TypeError for a message with a field of a kind that the contract does not have; Error for a value that its field can't hold */
export function encode<D extends DescMessage>(desc: D, message: MessageShape<D>): Uint8Array {
  const write = messageWriter(desc);
  try {
    write(message as Values);
    return writer.finish();
  } catch (error) {
    // What is half written must not stand in front of the next message.
    writer.finish();
    throw error;
  }
}
