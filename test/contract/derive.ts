/** Bad requests that follow from the contract's own rules: each is a good request with one field made wrong. */
import { type DescField, type DescMessage, getOption, hasOption, type Message, ScalarType } from "@bufbuild/protobuf";
import {
  type FieldRules,
  Ignore,
  type Int32Rules,
  type Int64Rules,
  field as ruleOption,
} from "@bufbuild/protovalidate/gen/buf/validate/validate_pb.js";
import { fresh } from "./shop.ts";

/** Changes a request, which is a copy of a good one. */
export type Change = (request: Message) => void;

/** A wrong value of one field, which the contract refuses as ARGUMENT_INVALID with that field. */
export type BadField = Readonly<{ name: string; field: string; change: Change }>;

/** An id of nothing in the place of one that is there; `key` is what the refusal's metadata calls it. */
export type UnknownId = Readonly<{ field: string; key: string; id: string; change: Change }>;

type Values = Record<string, unknown>;
type Place = Readonly<{
  path: string;
  field: DescField;
  rules: FieldRules | undefined;
  put(root: Message, value: unknown): void;
  value: unknown;
}>;

/** A field's rules; undefined when it has none. */
function rulesOf(field: DescField): FieldRules | undefined {
  return hasOption(field, ruleOption) ? getOption(field, ruleOption) : undefined;
}

function read(parent: Values, field: DescField): unknown {
  if (!field.oneof) return parent[field.localName];
  const chosen = parent[field.oneof.localName] as { case?: string; value?: unknown };
  return chosen.case === field.localName ? chosen.value : undefined;
}

function write(parent: Values, field: DescField, value: unknown): void {
  if (field.oneof) parent[field.oneof.localName] = { case: field.localName, value };
  else parent[field.localName] = value;
}

const isOwn = (message: DescMessage) => message.typeName.startsWith("shop.");

/** All fields of a request, those of nested messages included; of a list of messages the first element's. */
function* placesOf(
  desc: DescMessage,
  root: Message,
  at = (it: Message) => it as unknown as Values,
  prefix = "",
): Generator<Place> {
  for (const field of desc.fields) {
    const path = `${prefix}${field.name}`;
    const value = read(at(root), field);
    const put = (target: Message, bad: unknown) => write(at(target), field, bad);
    yield { path, field, rules: rulesOf(field), put, value };
    const nested = field.message && isOwn(field.message) ? field.message : undefined;
    if (!nested) continue;
    const list = field.fieldKind === "list";
    const down = (it: Message) => (list ? (read(at(it), field) as Values[])[0] : read(at(it), field)) as Values;
    if (down(root) === undefined) throw new Error(`${desc.typeName}: the good request leaves out ${path}`);
    yield* placesOf(nested, root, down, `${path}${list ? "[0]" : ""}.`);
  }
}

type Named = [name: string, value: unknown];

function badStrings(rules: FieldRules, text: string): Named[] {
  if (rules.type.case !== "string") return [];
  const { minLen, maxLen, wellKnown } = rules.type.value;
  const bad: Named[] = [];
  const mayBeEmpty = rules.ignore === Ignore.IF_ZERO_VALUE;
  if (wellKnown.case === "uuid") {
    bad.push(["no uuid", "not-a-uuid"], ["uuid and more", `${fresh()}0`], ["uuid in braces", `{${fresh()}}`]);
    if (!mayBeEmpty) bad.push(["empty", ""]);
    return bad;
  }
  if (minLen > 0n) bad.push(["empty", ""]);
  if (maxLen > 0n) bad.push(["too long", "x".repeat(Number(maxLen) + 1)]);
  // Tokens are opaque: what is wrong with one is for the list to say.
  if (!/(page_token|after_position)$/.test(text)) bad.push(["NUL", "a\0b"]);
  return bad;
}

function badNumbers(rules: Int32Rules | Int64Rules, bits: number, type: (value: bigint) => unknown): Named[] {
  const { greaterThan, lessThan, notIn } = rules;
  const bad = notIn.map((value): Named => [String(value), value]);
  if (greaterThan.case === "gte") {
    const below = BigInt(greaterThan.value) - 1n;
    bad.push([`${below}`, type(below)], ["smallest integer", type(-(2n ** BigInt(bits - 1)))]);
  }
  if (lessThan.case === "lte") {
    const above = BigInt(lessThan.value) + 1n;
    bad.push([`${above}`, type(above)], ["largest integer", type(2n ** BigInt(bits - 1) - 1n)]);
  }
  return bad;
}

function badScalars(rules: FieldRules, path: string): Named[] {
  const { type } = rules;
  if (type.case === "int32") return badNumbers(type.value, 32, Number);
  if (type.case === "int64") return badNumbers(type.value, 64, (value) => value);
  if (type.case !== "enum") return badStrings(rules, path);
  const bad = type.value.notIn.map((value): Named => [`enum ${value}`, value]);
  return type.value.definedOnly ? [...bad, ["unknown enum", 99], ["negative enum", -1]] : bad;
}

/** As many different elements as asked for, made like the first. */
function elements(field: DescField, first: unknown, count: number): unknown[] {
  return Array.from({ length: count }, () => {
    if (typeof first === "string") return fresh();
    const copy = { ...(first as Values) };
    for (const inner of field.message?.fields ?? []) if (isUuid(rulesOf(inner))) copy[inner.localName] = fresh();
    return copy;
  });
}

function badLists({ field, rules, value, path }: Place): [name: string, value: unknown, path: string][] {
  if (rules?.type.case !== "repeated") return [];
  const { minItems, maxItems, items } = rules.type.value;
  const bad: [string, unknown, string][] = [];
  if (minItems > 0n) bad.push(["no items", [], path]);
  const [first] = value as unknown[];
  if (maxItems > 0n) bad.push(["too many items", elements(field, first, Number(maxItems) + 1), path]);
  if (items) for (const [name, item] of badScalars(items, path)) bad.push([name, [first, item], `${path}[1]`]);
  return bad;
}

/** Every wrong value of every field that the contract's rules name. */
export function badFields(desc: DescMessage, good: Message): BadField[] {
  return [...placesOf(desc, good)].flatMap((place) => {
    const { rules, path, put } = place;
    if (!rules) return [];
    const bad = badScalars(rules, path).map(([name, value]): [string, unknown, string] => [name, value, path]);
    if (rules.required) bad.push(["missing", undefined, path]);
    return [...bad, ...badLists(place)].map(([name, value, field]) => ({
      name: `${field}: ${name}`,
      field,
      change: (request: Message) => put(request, value),
    }));
  });
}

function isUuid(rules: FieldRules | undefined): boolean {
  return rules?.type.case === "string" && rules.type.value.wellKnown.case === "uuid";
}

/** Each id in the request, replaced by one that nothing has. */
export function unknownIds(desc: DescMessage, good: Message): UnknownId[] {
  return [...placesOf(desc, good)].flatMap(({ rules, path, field, put, value }) => {
    const inList = rules?.type.case === "repeated" && isUuid(rules.type.value.items);
    if (!inList && !isUuid(rules)) return [];
    const id = fresh();
    const key = inList ? field.name.replace(/s$/, "") : field.name;
    const bad = inList ? [...(value as string[]), id] : id;
    return [{ field: path, key, id, change: (request: Message) => put(request, bad) }];
  });
}

/** Fields that may hold anything: each is a hole in the contract. */
export function unruledFields(desc: DescMessage, good: Message): string[] {
  return [...placesOf(desc, good)]
    .filter(({ field, rules }) => !rules && !field.message && field.scalar !== ScalarType.BOOL)
    .map(({ path }) => path);
}

/** The ids of a request in capital letters: other texts, but the same UUIDs. */
export function capitalIds(desc: DescMessage, good: Message): Change {
  const places = [...placesOf(desc, good)].filter(
    ({ rules }) => isUuid(rules) || (rules?.type.case === "repeated" && isUuid(rules.type.value.items)),
  );
  return (request) => {
    for (const { put, value } of places) {
      put(request, Array.isArray(value) ? value.map((id: string) => id.toUpperCase()) : String(value).toUpperCase());
    }
  };
}
