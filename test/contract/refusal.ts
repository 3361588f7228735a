/** What a refusal has to look like through every door, and that nothing is left of it. */
import type { Message } from "@bufbuild/protobuf";
import { expect } from "vitest";
import { Refused } from "../rpc/clients.ts";
import { ask, type Method, type Shop } from "./shop.ts";

/** The table of the design, by code. */
const REASONS: Readonly<Record<string, readonly string[]>> = {
  INVALID_ARGUMENT: ["ARGUMENT_INVALID", "PAGE_TOKEN_INVALID", "POSITION_INVALID"],
  ALREADY_EXISTS: ["CART_ITEM_EXISTS", "COUPON_ALREADY_CLAIMED", "REQUEST_ID_REUSED"],
  FAILED_PRECONDITION: [
    "POSITION_EXPIRED",
    "INSUFFICIENT_STOCK",
    "INSUFFICIENT_BALANCE",
    "BALANCE_LIMIT_EXCEEDED",
    "CART_EMPTY",
    "CART_FULL",
    "COUPON_NOT_USABLE",
    "ORDER_NOT_PAYABLE",
    "ORDER_NOT_CANCELLABLE",
    "PAYMENT_NOT_REFUNDABLE",
    "PAYMENT_IN_PROGRESS",
    "TOTAL_CHANGED",
  ],
  RESOURCE_EXHAUSTED: ["COUPON_SOLD_OUT"],
  ABORTED: ["VERSION_MISMATCH"],
  UNAUTHENTICATED: ["TOKEN_MISSING", "TOKEN_INVALID"],
  PERMISSION_DENIED: ["NOT_YOURS", "ROLE_REQUIRED"],
  UNIMPLEMENTED: ["METHOD_NOT_SERVED"],
};

function codeOf(reason: string): string {
  if (reason.endsWith("_NOT_FOUND")) return "NOT_FOUND";
  return Object.keys(REASONS).find((code) => REASONS[code]?.includes(reason)) ?? `no code for ${reason}`;
}

/** `metadata` left out: any. `fields` left out: none is wrong. */
export type Expected = Readonly<{
  name: string;
  reason: string;
  metadata?: Readonly<Record<string, string>>;
  fields?: readonly string[];
}>;

/** `token` left out: none is sent. `binaryOnly`: JSON can't say it. */
export type Refusal = Expected &
  Readonly<{ request: Message | object; token?: string | undefined; binaryOnly?: true | undefined }>;

/** One line that says it all, so that a difference is easy to see. */
function line(at: string, { reason, metadata, fields = [] }: Omit<Expected, "name">, code = codeOf(reason)): string {
  return `${at} -> ${code} ${reason} [${fields.join()}]${metadata ? ` ${JSON.stringify(metadata)}` : ""}`;
}

/** Sends each request through each door: it is refused as expected, everywhere with the same words, and nothing is written. */
export async function expectRefusals(shop: Shop, method: Method, refusals: readonly Refusal[]): Promise<void> {
  const found: string[] = [];
  const wanted: string[] = [];
  for (const { request, token, binaryOnly, name, ...refusal } of refusals) {
    const before = await shop.fingerprint();
    const answers = new Set<string>();
    for (const door of binaryOnly ? shop.doors.slice(0, 2) : shop.doors) {
      const at = `${door.name}: ${name}`;
      wanted.push(line(at, refusal));
      const error = await ask(door, method, request, token).catch((refused: unknown) => refused);
      if (!(error instanceof Refused)) {
        found.push(`${at} -> ${error}`);
        continue;
      }
      const { code, reason = "no reason", message, violations } = error;
      const metadata = refusal.metadata && { metadata: error.metadata };
      found.push(line(at, { reason, ...metadata, fields: violations.map(({ field }) => field) }, code));
      answers.add(JSON.stringify([message, error.metadata, violations]));
    }
    if (answers.size > 1) found.push(`${name} -> not the same through each door: ${[...answers]}`);
    if ((await shop.fingerprint()) !== before) found.push(`${name} -> something was written`);
  }
  expect(found).toEqual(wanted);
}
