import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { create } from "@bufbuild/protobuf";
import { MethodOptionsSchema } from "@bufbuild/protobuf/wkt";
import type { ServiceImpl } from "@connectrpc/connect";
import { exportJWK, generateKeyPair, SignJWT, UnsecuredJWT } from "jose";
import { pino } from "pino";
import { expect, onTestFinished, test } from "vitest";
import { ProductService } from "../../gen/shop/v1/product_pb.ts";
import { UserService } from "../../gen/shop/v1/user_pb.ts";
import { createVerifier, sign } from "../../src/rpc/auth.ts";
import { Pipeline, route } from "../../src/rpc/pipeline.ts";
import { secret, service, startServer, throughEachDoor, token } from "./server.ts";

const { getUser, createUser } = UserService.method;
const userId = "0199d1f2-6b1a-7c3e-9d53-3f1f0f9c2a11";
const hour = { subject: userId, roles: ["user"], ttl: "1h" } as const;

/** The same token with another payload and the old signature. */
function tampered(good: string): string {
  const [header, payload, signature] = good.split(".") as [string, string, string];
  const claims = JSON.parse(Buffer.from(payload, "base64url").toString());
  const forged = Buffer.from(JSON.stringify({ ...claims, roles: ["admin", "service"] })).toString("base64url");
  return [header, forged, signature].join(".");
}

async function badTokens(): Promise<Record<string, string>> {
  const { privateKey } = await generateKeyPair("RS256");
  const rsa = new SignJWT({ roles: ["service"] }).setProtectedHeader({ alg: "RS256" }).setSubject("x");
  const hs512 = new SignJWT({ roles: ["service"] }).setProtectedHeader({ alg: "HS512" }).setSubject("x");
  const eternal = new SignJWT({ roles: ["service"] }).setProtectedHeader({ alg: "HS256" }).setSubject("x");
  const noRoles = new SignJWT({}).setProtectedHeader({ alg: "HS256" }).setSubject("x").setExpirationTime("1h");
  const noSubject = new SignJWT({ roles: ["service"] }).setProtectedHeader({ alg: "HS256" }).setExpirationTime("1h");
  return {
    garbage: "garbage",
    "alg none": new UnsecuredJWT({ roles: ["service"] }).setSubject("x").setExpirationTime("1h").encode(),
    "another key": await sign(Buffer.from("another secret that is also long enough"), hour),
    "another algorithm": await rsa.setExpirationTime("1h").sign(privateKey),
    "another hash": await hs512.setExpirationTime("1h").sign(secret),
    tampered: tampered(await sign(secret, hour)),
    expired: await sign(secret, { ...hour, ttl: "-10s" }),
    "no exp": await eternal.sign(secret),
    "no roles": await noRoles.sign(secret),
    "no subject": await noSubject.sign(secret),
  };
}

test("a call without a token, or with something else than a bearer token, is TOKEN_MISSING", async () => {
  const server = await startServer();
  await throughEachDoor(server, async (door) => {
    const missing = { code: "UNAUTHENTICATED", reason: "TOKEN_MISSING" };
    await expect(door.unary(getUser, { userId })).rejects.toMatchObject(missing);
    const headers = { authorization: "Basic dXNlcjpwYXNz" };
    await expect(door.unary(getUser, { userId }, { headers })).rejects.toMatchObject(missing);
  });
});

test("a token that is forged, too old or incomplete is TOKEN_INVALID", async () => {
  const server = await startServer();
  for (const [name, bad] of Object.entries(await badTokens())) {
    await throughEachDoor(server, async (door) => {
      const refused = door.unary(getUser, { userId }, { token: bad });
      await expect(refused, name).rejects.toMatchObject({ code: "UNAUTHENTICATED", reason: "TOKEN_INVALID" });
    });
  }
});

test("a token of another issuer or for another audience is TOKEN_INVALID where those are set", async () => {
  const rules = { issuer: "https://issuer.example", audience: "shop" };
  const server = await startServer({ verifier: createVerifier({ secret }, rules) });
  const claims = { ...hour, roles: ["service"] } as const;
  const bad = [{}, { ...rules, issuer: "https://other.example" }, { ...rules, audience: "other" }];
  for (const carried of bad) {
    const wrong = server.grpc.unary(getUser, { userId }, { token: await sign(secret, { ...claims, ...carried }) });
    await expect(wrong).rejects.toMatchObject({ reason: "TOKEN_INVALID" });
  }
  const right = server.grpc.unary(getUser, { userId }, { token: await sign(secret, { ...claims, ...rules }) });
  await expect(right).rejects.toMatchObject({ reason: "USER_NOT_FOUND" });
});

test("a token that was good is refused once it has expired", async () => {
  const server = await startServer();
  // A second of it may be over at once: tokens end at whole ones.
  const short = await sign(secret, { ...hour, roles: ["service"], ttl: "2s" });
  await expect(server.grpc.unary(getUser, { userId }, { token: short })).rejects.toMatchObject({ code: "NOT_FOUND" });
  await expect
    .poll(() => server.grpc.unary(getUser, { userId }, { token: short }).catch((error) => error.reason), {
      timeout: 5_000,
    })
    .toBe("TOKEN_INVALID");
});

test("a user gets its own data and NOT_YOURS for another's; a service gets anybody's", async () => {
  const server = await startServer();
  const own = await token(["user"], userId);
  const both = await token(["user", "admin"], userId);
  const other = "0199d1f2-6b1a-7c3e-9d53-3f1f0f9c2a12";
  await throughEachDoor(server, async (door) => {
    await expect(door.unary(getUser, { userId }, { token: own })).rejects.toMatchObject({ code: "NOT_FOUND" });
    for (const mine of [own, both]) {
      const refused = door.unary(getUser, { userId: other }, { token: mine });
      await expect(refused).rejects.toMatchObject({ code: "PERMISSION_DENIED", reason: "NOT_YOURS" });
    }
    await expect(door.unary(getUser, { userId: other }, { token: service })).rejects.toMatchObject({
      code: "NOT_FOUND",
    });
  });
});

test("a token is checked once, however its header is spelled, so that nobody drives out the tokens of others", async () => {
  const verifier = createVerifier({ secret });
  const good = await sign(secret, hour);
  const caller = await verifier.verify(`Bearer ${good}`);
  // What is known is answered at once, and not by a promise.
  for (const header of [`Bearer ${good}`, `bearer   ${good}`, `BEARER ${good}  `]) {
    expect(verifier.verify(header)).toBe(caller);
  }
});

test("a user in capital letters is the same user, also to its request ids", async () => {
  const spelled = await token(["user", "service"], userId.toUpperCase());
  const same = await token(["user", "service"], userId);
  const own = await token(["user"], userId.toUpperCase());
  const server = await startServer();
  const request = { requestId: "capitals", name: "Ada" };
  const { message } = await server.grpc.unary(createUser, request, { token: spelled });
  const again = await server.grpc.unary(createUser, request, { token: same });
  expect(again).toMatchObject({ message });
  expect(again.header("idempotent-replay")).toBe("true");
  await expect(server.grpc.unary(getUser, { userId }, { token: own })).rejects.toMatchObject({ code: "NOT_FOUND" });
});

test("a role that the rule does not name is ROLE_REQUIRED, whatever the request holds", async () => {
  const server = await startServer();
  const user = await token(["user"]);
  const admin = await token(["admin"]);
  const nothing = await token([]);
  await throughEachDoor(server, async (door) => {
    const denied = { code: "PERMISSION_DENIED", reason: "ROLE_REQUIRED", metadata: { roles: "service or admin" } };
    await expect(door.unary(createUser, { name: "" }, { token: user })).rejects.toMatchObject(denied);
    await expect(door.unary(createUser, {}, { token: nothing })).rejects.toMatchObject(denied);
    await expect(door.unary(getUser, {}, { token: admin })).rejects.toMatchObject({ reason: "ROLE_REQUIRED" });
  });
});

/** An issuer that publishes its keys, until it is told to be down. */
async function startIssuer() {
  const { publicKey, privateKey } = await generateKeyPair("ES256", { extractable: true });
  const jwk = { ...(await exportJWK(publicKey)), kid: "one", alg: "ES256" };
  const state = { status: 200 };
  const server = createServer((_request, response) => {
    response.writeHead(state.status, { "content-type": "application/json" }).end(JSON.stringify({ keys: [jwk] }));
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  onTestFinished(() => void server.close());
  const issue = (kid: string) =>
    new SignJWT({ roles: ["service"] })
      .setProtectedHeader({ alg: "ES256", kid })
      .setSubject("backend")
      .setExpirationTime("1h")
      .sign(privateKey);
  return { state, issue, jwksUrl: `http://127.0.0.1:${(server.address() as AddressInfo).port}/jwks` };
}

test("tokens of an issuer are checked with its keys; one that is down is UNAVAILABLE and not the caller's fault", async () => {
  const issuer = await startIssuer();
  issuer.state.status = 500;
  const server = await startServer({ verifier: createVerifier({ jwksUrl: issuer.jwksUrl }) });
  const good = await issuer.issue("one");
  const down = { code: "UNAVAILABLE", reason: "ISSUER_UNAVAILABLE", retryMs: 1_000 };
  await expect(server.grpc.unary(getUser, { userId }, { token: good })).rejects.toMatchObject(down);
  issuer.state.status = 200;
  await expect(server.grpc.unary(getUser, { userId }, { token: good })).rejects.toMatchObject({ code: "NOT_FOUND" });
  const bad = [await issuer.issue("two"), service, "garbage"];
  for (const wrong of bad) {
    const refused = server.grpc.unary(getUser, { userId }, { token: wrong });
    await expect(refused).rejects.toMatchObject({ reason: "TOKEN_INVALID" });
  }
});

test("a service with an RPC that has no access rule can't be served", () => {
  const method = { ...UserService.method.getUser, proto: { options: create(MethodOptionsSchema) } };
  const bare = { ...UserService, methods: [UserService.method.createUser, method] } as unknown as typeof UserService;
  const impl = { createUser: () => ({}), getUser: () => ({}) };
  const compose = () => new Pipeline([route(bare, impl)], createVerifier({ secret }), pino({ enabled: false }));
  expect(compose).toThrow("shop.v1.UserService/GetUser has no access rule");
});

test("an RPC without a handler can't be served", () => {
  const impl = {} as ServiceImpl<typeof ProductService>;
  const compose = () =>
    new Pipeline([route(ProductService, impl)], createVerifier({ secret }), pino({ enabled: false }));
  expect(compose).toThrow("shop.v1.ProductService/CreateProduct has no handler");
});
