/** The contract's messages as they go out: byte for byte as the library writes them. */
import { readdirSync } from "node:fs";
import {
  create,
  type DescField,
  type DescMessage,
  type DescService,
  type Message,
  ScalarType,
  toBinary,
} from "@bufbuild/protobuf";
import { WireType } from "@bufbuild/protobuf/wire";
import { TimestampSchema } from "@bufbuild/protobuf/wkt";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { encode } from "../../src/rpc/encode.ts";
import { encodeStreamed } from "../../src/rpc/handler.ts";

const generated = new URL("../../gen/shop/v1/", import.meta.url);
const modules: Record<string, unknown>[] = await Promise.all(
  readdirSync(generated).map((name) => import(new URL(name, generated).href)),
);
const exported = modules.flatMap((module) => Object.values(module) as { kind?: string }[]);
const services = exported.filter((one): one is DescService => one.kind === "service");
const methods = services.flatMap((service) => service.methods);
const messages = methods.flatMap(({ input, output }) => [input, output]).map((desc) => [desc.typeName, desc] as const);

const text = fc.oneof(
  fc.string({ unit: "binary", maxLength: 300 }),
  fc.string({ minLength: 100, maxLength: 200 }),
  fc.constant(""),
);
const scalars: Partial<Record<ScalarType, fc.Arbitrary<unknown>>> = {
  [ScalarType.STRING]: text,
  [ScalarType.INT32]: fc.oneof(fc.integer(), fc.constantFrom(0, 1, 127, 128)),
  [ScalarType.INT64]: fc.oneof(fc.bigInt({ min: -(2n ** 63n), max: 2n ** 63n - 1n }), fc.constant(0n)),
  [ScalarType.BOOL]: fc.boolean(),
};

function anyOf(field: DescField): fc.Arbitrary<unknown> {
  if (field.message) return messageOf(field.message);
  if (field.enum) return fc.constantFrom(...field.enum.values.map(({ number }) => number));
  return scalars[field.scalar as ScalarType] ?? fc.constant(undefined);
}

/** Each field set or not, each of a oneof's in its turn; sometimes with a field that a newer contract has. */
function messageOf(desc: DescMessage): fc.Arbitrary<Message> {
  const fields = desc.members.map((member) => {
    if (member.kind === "oneof") {
      const cases = member.fields.map((field) => anyOf(field).map((value) => ({ case: field.localName, value })));
      return [member.localName, fc.option(fc.oneof(...cases), { nil: undefined })] as const;
    }
    const one = anyOf(member);
    return [member.localName, member.fieldKind === "list" ? fc.array(one, { maxLength: 3 }) : one] as const;
  });
  const unknown = { no: 2_000, wireType: WireType.LengthDelimited, data: Uint8Array.of(1, 7) };
  return fc.tuple(fc.record(Object.fromEntries(fields), { requiredKeys: [] }), fc.boolean()).map(([values, newer]) => {
    const message = create(desc, values);
    if (newer) message.$unknown = [unknown];
    return message;
  });
}

describe("each message of the contract", () => {
  test.each(messages)("%s", (_, desc) => {
    fc.assert(
      fc.property(messageOf(desc), (message) => {
        expect(Buffer.from(encode(desc, message))).toEqual(Buffer.from(toBinary(desc, message)));
      }),
      { numRuns: 50 },
    );
  });
});

test("a message that can't be written leaves nothing in the next one", () => {
  const [bad, good] = [create(TimestampSchema, { seconds: 5n, nanos: 0.5 }), create(TimestampSchema, { seconds: 7n })];
  expect(() => encode(TimestampSchema, bad)).toThrow("int32");
  expect(encode(TimestampSchema, good)).toEqual(toBinary(TimestampSchema, good));
});

test("what is given out stays as it is", () => {
  const [first, second] = [create(TimestampSchema, { seconds: 5n }), create(TimestampSchema, { seconds: 7n })];
  const bytes = encode(TimestampSchema, first);
  encode(TimestampSchema, second);
  expect(bytes).toEqual(toBinary(TimestampSchema, first));
});

test("a message of a stream that is sent to many is encoded once", () => {
  const [message, equal] = [create(TimestampSchema, { seconds: 5n }), create(TimestampSchema, { seconds: 5n })];
  const bytes = encodeStreamed(TimestampSchema, message);
  expect(bytes).toEqual(toBinary(TimestampSchema, message));
  expect(encodeStreamed(TimestampSchema, message)).toBe(bytes);
  expect(encodeStreamed(TimestampSchema, equal)).not.toBe(bytes);
});
