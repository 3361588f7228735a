/** A stop while callers go on calling. */
import { randomUUID } from "node:crypto";
import { setTimeout as delay } from "node:timers/promises";
import { create, toBinary } from "@bufbuild/protobuf";
import { Client, credentials, Metadata, status } from "@grpc/grpc-js";
import { expect, onTestFinished, test } from "vitest";
import { CreateUserRequestSchema } from "../../gen/shop/v1/user_pb.ts";
import { sign } from "../../src/rpc/auth.ts";
import { createDatabase } from "../support/database.ts";
import { startServer } from "../support/processes.ts";
import { createProxy } from "../support/proxy.ts";

const SECRET = "a secret that only this test file knows";
const CALLERS = 24;

type End = { code: status; details: string };

/** A server, and what sends it a call that writes and returns how that has ended, all on one connection through a proxy. */
async function startCalled() {
  const server = await startServer({ databaseUrl: await createDatabase(), env: { JWT_SECRET: SECRET } });
  const metadata = new Metadata();
  const token = await sign(Buffer.from(SECRET), { subject: "backend", roles: ["service"], ttl: "1h" });
  metadata.set("authorization", `Bearer ${token}`);
  const proxy = await createProxy(`http://127.0.0.1:${server.grpcPort}`);
  const client = new Client(new URL(proxy.url).host, credentials.createInsecure());
  onTestFinished(() => client.close());
  const bytes = (message: Buffer) => message;
  const call = () => {
    const message = create(CreateUserRequestSchema, { requestId: randomUUID(), name: "x" });
    const request = Buffer.from(toBinary(CreateUserRequestSchema, message));
    return new Promise<End>((resolve) => {
      client.makeUnaryRequest("/shop.v1.UserService/CreateUser", bytes, bytes, request, metadata, (error) =>
        resolve(error ?? { code: status.OK, details: "" }),
      );
    });
  };
  return { server, proxy, call };
}

test("each call under load is answered, or refused with UNAVAILABLE: none is cut off", async () => {
  const { server, call } = await startCalled();
  const codes: number[] = [];
  const warm = Promise.withResolvers<void>();
  const callers = Array.from({ length: CALLERS }, async () => {
    do {
      codes.push((await call()).code);
      if (codes.length === 200) warm.resolve();
    } while (codes.at(-1) === status.OK);
  });
  await warm.promise;
  server.kill("SIGTERM");
  await Promise.all(callers);
  expect(new Set(codes)).toEqual(new Set([status.OK, status.UNAVAILABLE]));
  await server.exited;
});

test("the stop waits for somebody who has not heard of it, and sends calls meanwhile: they are refused, not cut off", async () => {
  const { server, proxy, call } = await startCalled();
  expect((await call()).code).toBe(status.OK);
  proxy.keep();
  server.kill("SIGTERM");
  await delay(1_000);
  const ends = Promise.all(Array.from({ length: CALLERS }, call));
  expect(await Promise.race([server.exited, delay(1_000, "still there")])).toBe("still there");
  proxy.pass();
  const heard = performance.now();
  const codes = new Set(
    (await ends).map(({ code, details }) => (details.includes("dropped") ? details : status[code])),
  );
  expect(codes).toEqual(new Set(["UNAVAILABLE"]));
  expect((await server.exited).code).toBe(0);
  expect(performance.now() - heard).toBeLessThan(1_000);
});
