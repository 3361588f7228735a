/** Every RPC of the contract and its rules, through both doors on the real service. */
import { clone, create, type Message, toJson } from "@bufbuild/protobuf";
import { describe, expect, test } from "vitest";
import { BalanceService } from "../../gen/shop/v1/balance_pb.ts";
import { CartService } from "../../gen/shop/v1/cart_pb.ts";
import { CouponService } from "../../gen/shop/v1/coupon_pb.ts";
import { EventService } from "../../gen/shop/v1/event_pb.ts";
import { OrderService } from "../../gen/shop/v1/order_pb.ts";
import { PaymentService } from "../../gen/shop/v1/payment_pb.ts";
import { ProductService } from "../../gen/shop/v1/product_pb.ts";
import { RankingService } from "../../gen/shop/v1/ranking_pb.ts";
import { UserService } from "../../gen/shop/v1/user_pb.ts";
import { badFields, type Change, capitalIds, unknownIds, unruledFields } from "./derive.ts";
import { expectRefusals, type Refusal } from "./refusal.ts";
import type { RoleName, Rule } from "./rule.ts";
import { rules } from "./rules.ts";
import { ask, fresh, openShop, token, trusted } from "./shop.ts";

const services = [
  UserService,
  BalanceService,
  ProductService,
  CartService,
  CouponService,
  OrderService,
  PaymentService,
  RankingService,
  EventService,
];
const shop = await openShop();
const table = rules.map((rule) => [`${rule.method.parent.name}/${rule.method.name}`, rule] as const);
const allRoles: readonly RoleName[] = ["user", "service", "admin"];

async function goodRequest({ method, good }: Rule): Promise<Message> {
  return create(method.input, (await good(shop)) as Record<string, unknown>);
}

function changed({ method }: Rule, good: Message, change: Change): Message {
  const request = clone(method.input, good);
  change(request);
  return request;
}

const isWrite = ({ method }: Rule) => method.input.fields.some(({ name }) => name === "request_id");
const hasUser = ({ method }: Rule) => method.input.fields.some(({ name }) => name === "user_id");

/** `user_id` -> USER_NOT_FOUND */
const notFound = (key: string) => key.replace(/_id$/, "_NOT_FOUND").toUpperCase();

function wrongInputs(rule: Rule, good: Message): Refusal[] {
  const derived = badFields(rule.method.input, good).map(({ name, field, change }) => ({
    name,
    request: changed(rule, good, change),
    token: trusted,
    reason: "ARGUMENT_INVALID",
    fields: [field],
  }));
  const own = rule.wrong.map(({ change, ...wrong }) => ({
    ...wrong,
    request: changed(rule, good, change),
    token: trusted,
  }));
  return [...derived, ...own];
}

function unknown(rule: Rule, good: Message): Refusal[] {
  return unknownIds(rule.method.input, good).flatMap(({ field, key, id, change }) => {
    const reason = rule.unknown[field] === undefined ? notFound(key) : rule.unknown[field];
    if (reason === null) return [];
    const metadata = reason === notFound(key) ? { metadata: { [key]: id } } : {};
    return [{ name: `${field}: unknown`, request: changed(rule, good, change), token: trusted, reason, ...metadata }];
  });
}

async function strangers(rule: Rule, good: Message): Promise<Refusal[]> {
  const [subject, other] = [await shop.user(), await shop.user()];
  const [allowed] = rule.roles;
  const roles = allowed ? [allowed] : [];
  const cases: Refusal[] = [
    { name: "no token", request: good, reason: "TOKEN_MISSING" },
    { name: "no JWT", request: good, token: "x.y", reason: "TOKEN_INVALID" },
    { name: "expired token", request: good, token: await token(roles, subject, "-1 s"), reason: "TOKEN_INVALID" },
    {
      name: "forged token",
      request: good,
      token: await token(roles, subject, "1h", "another secret that is as long as it has to be"),
      reason: "TOKEN_INVALID",
    },
    { name: "no role", request: good, token: await token([], subject), reason: "ROLE_REQUIRED" },
  ];
  for (const role of allRoles.filter((name) => !rule.roles.includes(name))) {
    const metadata = { roles: rule.roles.join(" or ") };
    const wrong = await token([role], subject);
    cases.push({ name: `as ${role}`, request: good, token: wrong, reason: "ROLE_REQUIRED", metadata });
  }
  if (hasUser(rule) && rule.roles.includes("user")) {
    cases.push({ name: "for another user", request: good, token: await token(["user"], other), reason: "NOT_YOURS" });
  }
  if (rule.foreign) {
    const request = changed(rule, good, (it) => Object.assign(it, { userId: other }));
    cases.push({ name: "what is another user's", request, token: trusted, reason: rule.foreign });
  }
  return cases;
}

/** The good request with the same request id and other content. */
function reused(rule: Rule, good: Message): Refusal {
  const ids = unknownIds(rule.method.input, good);
  const change = ids.at(-1)?.change ?? ((request: Message) => Object.assign(request, { name: "Other" }));
  const { requestId } = good as unknown as { requestId: string };
  return {
    name: "request id used for another request",
    request: changed(rule, good, change),
    token: trusted,
    reason: "REQUEST_ID_REUSED",
    metadata: { request_id: requestId },
  };
}

test("the table has every RPC of the contract", () => {
  const served = services.flatMap((service) => service.methods.map(({ name }) => `${service.name}/${name}`));
  expect(table.map(([name]) => name).toSorted()).toEqual(served.toSorted());
});

describe.each(table)("%s", (_name, rule) => {
  const { method } = rule;

  test("every field has a rule", async () => {
    expect(unruledFields(method.input, await goodRequest(rule))).toEqual([]);
  });

  test("refuses strangers, wrong inputs and unknown ids, and writes nothing", async () => {
    const good = await goodRequest(rule);
    const cases = [...(await strangers(rule, good)), ...wrongInputs(rule, good), ...unknown(rule, good)];
    await expectRefusals(shop, method, cases);
    // What makes the refusals mean something: with nothing wrong it is served, under the request id that was refused.
    await ask(shop.grpc, method, good, trusted);
  });

  test("answers each role that may call, and the same through each door and for ids in capital letters", async () => {
    const good = await goodRequest(rule);
    const userId = (good as unknown as { userId?: string }).userId ?? "";
    for (const role of rule.roles) {
      const request = isWrite(rule) ? await goodRequest(rule) : good;
      const subject = role === "user" ? ((request as unknown as { userId?: string }).userId ?? userId) : "tests";
      await ask(shop.grpc, method, request, await token([role], subject || fresh()));
    }
    const answers = [];
    const capitals = changed(rule, good, capitalIds(method.input, good));
    for (const door of shop.doors) {
      const answer = await ask(door, method, door === shop.grpc ? good : capitals, trusted);
      const { asOf: _, ...json } = toJson(method.output, answer.message) as Record<string, unknown>;
      answers.push({ replay: answer.header("idempotent-replay"), json });
    }
    const [first] = answers;
    expect(first?.replay).toBe(null);
    const later = isWrite(rule) ? { ...first, replay: "true" } : first;
    expect(answers.slice(1)).toEqual([later, later]);
    if (isWrite(rule)) await expectRefusals(shop, method, [reused(rule, good)]);
  });
});
