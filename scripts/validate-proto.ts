/**
 * Prints `buf/validate/validate.proto` from the descriptor inside @bufbuild/protovalidate, so that buf can compile the
 * contract's validation rules without a registry. Messages, fields, enums and extensions suffice for that; the rules
 * that the file defines on its own fields (CEL) are run by the library and are left out.
 */
import { type DescEnum, type DescExtension, type DescField, type DescMessage, ScalarType } from "@bufbuild/protobuf";
import { FeatureSet_FieldPresence } from "@bufbuild/protobuf/wkt";
import { file_buf_validate_validate as file } from "@bufbuild/protovalidate/gen/buf/validate/validate_pb.js";

/** What a field or extension holds, as descriptors say it whatever its kind. */
type Held = { message?: DescMessage | undefined; enum?: DescEnum | undefined; scalar?: ScalarType | undefined };

function typeName(field: DescField | DescExtension): string {
  const held: Held = field;
  if (held.message) return `.${held.message.typeName}`;
  if (held.enum) return `.${held.enum.typeName}`;
  if (held.scalar !== undefined) return ScalarType[held.scalar].toLowerCase();
  throw new Error(`no type for ${field.name}`);
}

function printField(field: DescField): string {
  if (field.fieldKind === "map") {
    const key = ScalarType[field.mapKey].toLowerCase();
    return `map<${key}, ${typeName(field)}> ${field.name} = ${field.number};`;
  }
  const optional = field.presence === FeatureSet_FieldPresence.EXPLICIT && !field.oneof;
  const label = field.fieldKind === "list" ? "repeated " : optional ? "optional " : "";
  return `${label}${typeName(field)} ${field.name} = ${field.number};`;
}

function printEnum(desc: DescEnum): string {
  const values = desc.values.map((value) => `${value.name} = ${value.number};`);
  return `enum ${desc.name} { ${values.join(" ")} }`;
}

function printMessage(desc: DescMessage): string {
  const oneofs = desc.oneofs.map((oneof) => `oneof ${oneof.name} { ${oneof.fields.map(printField).join(" ")} }`);
  const plain = desc.fields.filter((field) => !field.oneof).map(printField);
  const ranges = desc.proto.extensionRange.map((range) => `extensions ${range.start} to ${(range.end ?? 0) - 1};`);
  const nested = [...desc.nestedMessages.map(printMessage), ...desc.nestedEnums.map(printEnum)];
  return `message ${desc.name} {\n${[...nested, ...oneofs, ...plain, ...ranges].join("\n")}\n}`;
}

function printExtension(desc: DescExtension): string {
  return `extend .${desc.extendee.typeName} { optional ${typeName(desc)} ${desc.name} = ${desc.number}; }`;
}

/** The whole file as proto2 text: the syntax in which every field of the descriptor can say what it is. */
export function printValidateProto(): string {
  const imports = file.dependencies.map((dependency) => `import "${dependency.name}.proto";`);
  return [
    `syntax = "proto2";`,
    `package ${file.proto.package};`,
    ...imports,
    ...file.enums.map(printEnum),
    ...file.messages.map(printMessage),
    ...file.extensions.map(printExtension),
  ].join("\n");
}
