/** How the table of rules is written, and the wrong inputs that several RPCs have in common. */
import type {
  DescMessage,
  DescMethodServerStreaming,
  DescMethodUnary,
  Message,
  MessageInitShape,
  MessageShape,
} from "@bufbuild/protobuf";
import type { Change } from "./derive.ts";
import type { Method, Shop } from "./shop.ts";

export type RoleName = "user" | "service" | "admin";

/** A wrong input that the descriptors don't tell of. */
export type Wrong = Readonly<{
  name: string;
  change: Change;
  reason: string;
  fields?: readonly string[];
  /** Nothing that JSON can say. */
  binaryOnly?: true;
}>;

export type Rule = Readonly<{
  method: Method;
  roles: readonly RoleName[];
  good(shop: Shop): Promise<object>;
  /** The reason that an unknown id gets, by field, where it is not the id's own; null: it is answered all the same. */
  unknown: Readonly<Record<string, string | null>>;
  /** The refusal of a request about what belongs to another user: then it is as if it were not there. */
  foreign?: string;
  wrong: readonly Wrong[];
}>;

type Unary<I extends DescMessage, O extends DescMessage> = DescMethodUnary<I, O> | DescMethodServerStreaming<I, O>;

/** Values to be put into the good request, or what changes it. */
type Wrongly<I extends DescMessage> = Partial<MessageShape<I>> | ((request: MessageShape<I>) => void);

type Spec<I extends DescMessage> = Readonly<{
  roles: readonly RoleName[];
  good(shop: Shop): Promise<MessageInitShape<I>>;
  unknown?: Rule["unknown"];
  foreign?: string;
  wrong?: Readonly<Record<string, readonly [Wrongly<I>, fields: readonly string[] | string, binaryOnly?: true]>>;
}>;

/** `wrong`: by name, the change and the fields that are found wrong, or the reason when that is another one. */
export function rule<I extends DescMessage, O extends DescMessage>(method: Unary<I, O>, spec: Spec<I>): Rule {
  const { wrong = {}, unknown = {}, ...rest } = spec;
  const list = Object.entries(wrong).map(([name, [change, found, binaryOnly]]) => ({
    name,
    change: (typeof change === "function" ? change : (it: Message) => Object.assign(it, change)) as Change,
    ...(typeof found === "string" ? { reason: found } : { reason: "ARGUMENT_INVALID", fields: found }),
    ...(binaryOnly && { binaryOnly }),
  }));
  return { method: method as Method, unknown, wrong: list, ...rest };
}

export const buyers = ["user", "service"] as const;
export const everybody = ["user", "service", "admin"] as const;
export const MAX_INT64 = 2n ** 63n - 1n;

const tokenOf = (text: string) => ({ pageToken: Buffer.from(text).toString("base64url") });

/** Tokens that a list did not give out. Those of other lists are in paging.test.ts. */
export const badTokens = (list: string) =>
  ({
    "page_token: garbage": [{ pageToken: "no token" }, "PAGE_TOKEN_INVALID"],
    "page_token: NUL": [{ pageToken: "a\0b" }, "PAGE_TOKEN_INVALID"],
    "page_token: no key": [tokenOf(`${list}:`), "PAGE_TOKEN_INVALID"],
    "page_token: SQL": [tokenOf(`${list}:1' or 1=1 --`), "PAGE_TOKEN_INVALID"],
    "page_token: beyond int64": [tokenOf(`${list}:9999999999999999999`), "PAGE_TOKEN_INVALID"],
    "page_token: of a list that is none": [tokenOf("everything:1"), "PAGE_TOKEN_INVALID"],
  }) as const;

type Basket = { lines: object[] };
export const baskets = {
  "neither lines nor cart": [{ lines: [] as never[] }, [""]],
  "lines and cart": [{ fromCart: true }, [""]],
  "a variant twice": [(request: Basket) => void request.lines.push({ ...request.lines[0] }), [""]],
} as const;
