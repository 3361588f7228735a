/** What is no request at all: refused with a reason, nothing written, and the server lives. */
import { Metadata, type ServiceError } from "@grpc/grpc-js";
import { expect, test } from "vitest";
import { UserService } from "../../gen/shop/v1/user_pb.ts";
import { expectRefusals } from "./refusal.ts";
import { fresh, openShop, token, trusted } from "./shop.ts";

const shop = await openShop();
const CREATE_USER = "/shop.v1.UserService/CreateUser";
const user = () => JSON.stringify({ requestId: fresh(), name: "Ada" });

type Http = {
  path?: string;
  method?: string;
  headers?: Record<string, string>;
  body?: string | Uint8Array<ArrayBuffer>;
};

/** A plain HTTP request, as curl sends one. */
async function http({ path = CREATE_USER, method = "POST", headers, body }: Http) {
  const sent = { "content-type": "application/json", authorization: `Bearer ${trusted}`, ...headers };
  const init = { method, headers: sent, ...(body !== undefined && { body }) };
  const response = await fetch(`http://127.0.0.1:${shop.httpPort}${path}`, init);
  const text = await response.text();
  const json = text.startsWith("{") ? JSON.parse(text) : {};
  return { status: response.status, code: json.code, reason: json.details?.[0]?.debug?.reason };
}

/** A gRPC request of any bytes to any path. */
function grpc(path: string, bytes: Uint8Array): Promise<{ code: number; details: string }> {
  const metadata = new Metadata();
  metadata.set("authorization", `Bearer ${trusted}`);
  return new Promise((resolve) => {
    const done = (error: ServiceError | null) => resolve({ code: error?.code ?? 0, details: error?.details ?? "" });
    const same = (it: Buffer) => it;
    shop.grpc.raw.makeUnaryRequest(path, same, same, Buffer.from(bytes), metadata, done);
  });
}

async function expectNothingWritten(work: () => Promise<void>): Promise<void> {
  const before = await shop.fingerprint();
  await work();
  expect(await shop.fingerprint()).toBe(before);
  expect(await http({ body: user() })).toMatchObject({ status: 200 });
}

const invalid = { status: 400, code: "invalid_argument", reason: "ARGUMENT_INVALID" };
const unknown = { status: 404, code: "unimplemented", reason: "METHOD_NOT_SERVED" };

test("a message over 1 MiB", async () => {
  const request = { requestId: fresh(), name: "x".repeat(1024 * 1024) };
  await expectNothingWritten(async () => {
    for (const door of shop.doors) {
      const refused = door.unary(UserService.method.createUser, request, { token: trusted });
      await expect(refused).rejects.toMatchObject({ code: "RESOURCE_EXHAUSTED", reason: "MESSAGE_TOO_LARGE" });
    }
  });
});

test.each(["{", "[]", '"text"', "", '{"name": 5}', '{"requestId": "1", "name": "\\ud800"}', "\0"])(
  "the body %j",
  (body) => expectNothingWritten(async () => expect(await http({ body })).toEqual(invalid)),
);

test("bytes that are no message", () =>
  expectNothingWritten(async () => {
    const bytes = Uint8Array.from([0xff, 0xff, 0xff]);
    expect(await http({ body: bytes, headers: { "content-type": "application/proto" } })).toEqual(invalid);
    expect(await grpc(CREATE_USER, bytes)).toMatchObject({ code: 3 });
    // A string field of bytes that are no UTF-8.
    const name = Uint8Array.from([0x0a, 0x01, 0x31, 0x12, 0x02, 0xc3, 0x28]);
    expect(await http({ body: name, headers: { "content-type": "application/proto" } })).toEqual(invalid);
    expect(await grpc(CREATE_USER, name)).toMatchObject({ code: 3 });
  }));

test.each(["/shop.v1.UserService/DropUsers", "/shop.v1.NoService/CreateUser", "/", "/shop.v2.UserService/CreateUser"])(
  "the RPC %s",
  (path) =>
    expectNothingWritten(async () => {
      expect(await http({ path, body: user() })).toEqual(unknown);
      expect(await grpc(path, new Uint8Array())).toMatchObject({ code: 12 });
    }),
);

test.each(["text/html", "text/plain", "application/xml", "application/x-www-form-urlencoded", ""])(
  "the content type %j",
  (type) =>
    expectNothingWritten(async () => {
      expect(await http({ body: user(), headers: { "content-type": type } })).toMatchObject({ status: 415 });
    }),
);

test.each(["GET", "PUT", "DELETE", "PATCH"])("the method %s", (method) =>
  expectNothingWritten(async () => {
    expect(await http({ method, ...(method !== "GET" && { body: user() }) })).toMatchObject({ status: 405 });
  }),
);

test("fields that the contract does not know are left aside", async () => {
  expect(await http({ body: '{"requestId": "new", "name": "Ada", "colour": "blue"}' })).toMatchObject({ status: 200 });
});

test.each(["Basic dXNlcjpwYXNz", "Bearer", `bearer${trusted}`, "Bearer a b", trusted])(
  "the authorization %j",
  (authorization) =>
    expectNothingWritten(async () => {
      const answer = await http({ body: user(), headers: { authorization } });
      expect(answer).toEqual({ status: 401, code: "unauthenticated", reason: "TOKEN_MISSING" });
    }),
);

test("tokens that nobody signed, or whose subject is too long to be kept", async () => {
  const [head, body, signature] = trusted.split(".");
  const none = Buffer.from('{"alg":"none"}').toString("base64url");
  const claims = Buffer.from('{"sub":"tests","roles":["admin"],"exp":99999999999}').toString("base64url");
  const tokens = {
    "alg none": `${none}.${body}.`,
    "alg none, with a signature": `${none}.${body}.${signature}`,
    "other claims": `${head}.${claims}.${signature}`,
    "no signature": `${head}.${body}.`,
    "half a token": trusted.slice(0, -10),
    "a subject of 256 characters": await token(["admin"], "s".repeat(256)),
  };
  const refusals = Object.entries(tokens).map(([name, token]) => ({
    name,
    request: { requestId: fresh(), name: "Ada" },
    token,
    reason: "TOKEN_INVALID",
  }));
  await expectRefusals(shop, UserService.method.createUser, refusals);
  const longest = { requestId: fresh(), name: "Ada" };
  await shop.grpc.unary(UserService.method.createUser, longest, { token: await token(["admin"], "s".repeat(255)) });
});
