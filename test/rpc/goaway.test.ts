/** A stop while callers go on calling. */
import { randomUUID } from "node:crypto";
import { create, toBinary } from "@bufbuild/protobuf";
import { Client, credentials, Metadata, status } from "@grpc/grpc-js";
import { expect, test } from "vitest";
import { CreateUserRequestSchema } from "../../gen/shop/v1/user_pb.ts";
import { sign } from "../../src/rpc/auth.ts";
import { createDatabase } from "../support/database.ts";
import { startServer } from "../support/processes.ts";

const SECRET = "a secret that only this test file knows";

test("each call under load is answered, or refused with UNAVAILABLE: none is cut off", async () => {
  const server = await startServer({ databaseUrl: await createDatabase(), env: { JWT_SECRET: SECRET } });
  const metadata = new Metadata();
  const token = await sign(Buffer.from(SECRET), { subject: "backend", roles: ["service"], ttl: "1h" });
  metadata.set("authorization", `Bearer ${token}`);
  const client = new Client(`127.0.0.1:${server.grpcPort}`, credentials.createInsecure());
  const createUser = () => {
    const request = toBinary(
      CreateUserRequestSchema,
      create(CreateUserRequestSchema, { requestId: randomUUID(), name: "x" }),
    );
    const bytes = (message: Buffer) => message;
    return new Promise<number>((resolve) => {
      client.makeUnaryRequest(
        "/shop.v1.UserService/CreateUser",
        bytes,
        bytes,
        Buffer.from(request),
        metadata,
        (error) => resolve(error ? error.code : status.OK),
      );
    });
  };
  const codes: number[] = [];
  const warm = Promise.withResolvers<void>();
  const callers = Array.from({ length: 24 }, async () => {
    do {
      codes.push(await createUser());
      if (codes.length === 200) warm.resolve();
    } while (codes.at(-1) === status.OK);
  });
  await warm.promise;
  server.kill("SIGTERM");
  await Promise.all(callers);
  expect(new Set(codes)).toEqual(new Set([status.OK, status.UNAVAILABLE]));
  client.close();
  await server.exited;
});
