import { type DescField, type DescMessage, getOption, hasOption, type Message } from "@bufbuild/protobuf";
import { type FieldRules, field as ruleOption } from "@bufbuild/protovalidate/gen/buf/validate/validate_pb.js";

type Values = Record<string, unknown>;
type Change = (message: Values) => void;

function isUuid(rules: FieldRules | undefined): boolean {
  return rules?.type.case === "string" && rules.type.value.wellKnown.case === "uuid";
}

function changeOf(field: DescField): Change | undefined {
  const name = field.localName;
  // Ids of requests stand neither in a oneof nor in a single message inside.
  if (field.fieldKind === "list" && field.listKind === "message") {
    const inner = lowerCaseIds(field.message);
    return inner && ((message) => (message[name] as Message[]).forEach(inner));
  }
  const rules = hasOption(field, ruleOption) ? getOption(field, ruleOption) : undefined;
  if (field.fieldKind === "scalar" && isUuid(rules)) {
    return (message) => {
      message[name] = (message[name] as string).toLowerCase();
    };
  }
  if (field.fieldKind === "list" && rules?.type.case === "repeated" && isUuid(rules.type.value.items)) {
    return (message) => {
      message[name] = (message[name] as string[]).map((id) => id.toLowerCase());
    };
  }
  return undefined;
}

/**
 * Makes the function that puts the ids of a request into the spelling in which they are stored. A UUID may come in capital
 * letters (RFC 9562, section 4), but behind this ids are compared as texts. Undefined when the request has no ids.
 */
export function lowerCaseIds(desc: DescMessage): ((request: Message) => void) | undefined {
  const changes = desc.fields.flatMap((field) => changeOf(field) ?? []);
  if (changes.length === 0) return undefined;
  return (request) => {
    for (const change of changes) change(request as unknown as Values);
  };
}
