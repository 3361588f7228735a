/** Calls whose request does not come, or not as one request should: before there is anything to answer. */
import { once } from "node:events";
import {
  connect as connectHttp2,
  constants,
  type IncomingHttpHeaders,
  type OutgoingHttpHeaders,
  type Settings,
} from "node:http2";
import { connect } from "node:net";
import { deflateSync, gzipSync } from "node:zlib";
import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { anyUnpack } from "@bufbuild/protobuf/wkt";
import { expect, onTestFinished, test } from "vitest";
import { ErrorInfoSchema } from "../../gen/google/rpc/error_details_pb.ts";
import { StatusSchema } from "../../gen/google/rpc/status_pb.ts";
import { GetUserRequestSchema, GetUserResponseSchema } from "../../gen/shop/v1/user_pb.ts";
import { createVerifier } from "../../src/rpc/auth.ts";
import { FLUSH_MS } from "../../src/rpc/door.ts";
import { secret, service, startServer } from "./server.ts";

const userId = "0199d1f2-6b1a-7c3e-9d53-3f1f0f9c2a11";
const path = "/shop.v1.UserService/GetUser";

function framed(message: Uint8Array, compressed = 0): Buffer {
  const head = Buffer.alloc(5);
  head.writeUInt8(compressed, 0);
  head.writeUInt32BE(message.length, 1);
  return Buffer.concat([head, message]);
}

const message = toBinary(GetUserRequestSchema, create(GetUserRequestSchema, { userId }));
const request = framed(message);

/** A call as bytes: headers, what is sent, and whether the sender says that this was all. */
function openStream(
  port: number,
  headers: OutgoingHttpHeaders,
  bytes: readonly Buffer[],
  end: boolean,
  settings: Settings = {},
) {
  const session = connectHttp2(`http://127.0.0.1:${port}`, { settings });
  session.on("error", () => {});
  onTestFinished(() => session.destroy());
  const stream = session.request({
    ":method": "POST",
    ":path": path,
    "content-type": "application/grpc",
    te: "trailers",
    authorization: `Bearer ${service}`,
    ...headers,
  });
  stream.on("error", () => {});
  for (const part of bytes) stream.write(part);
  if (end) stream.end();
  const status = new Promise<IncomingHttpHeaders>((resolve) => {
    const take = (answer: IncomingHttpHeaders) => "grpc-status" in answer && resolve(answer);
    stream.on("response", take).on("trailers", take).resume();
  });
  return { stream, status };
}

function reasonOf(answer: IncomingHttpHeaders): string | undefined {
  const { details } = fromBinary(StatusSchema, Buffer.from(String(answer["grpc-status-details-bin"]), "base64"));
  return details.map((any) => anyUnpack(any, ErrorInfoSchema)).find((info) => info)?.reason;
}

const malformed: Record<string, { headers?: OutgoingHttpHeaders; bytes: Buffer[]; code: number; reason: string }> = {
  "two requests": { bytes: [request, request], code: 12, reason: "METHOD_NOT_SERVED" },
  "no request": { bytes: [], code: 12, reason: "METHOD_NOT_SERVED" },
  "bytes that are not compressed as they say": {
    headers: { "grpc-encoding": "gzip" },
    bytes: [framed(Buffer.from("not gzip"), 1)],
    code: 3,
    reason: "ARGUMENT_INVALID",
  },
  "a compression that nobody knows": {
    headers: { "grpc-encoding": "snappy" },
    bytes: [framed(Buffer.from("something"), 1)],
    code: 12,
    reason: "METHOD_NOT_SERVED",
  },
  "half a request": { bytes: [request.subarray(0, 9)], code: 12, reason: "METHOD_NOT_SERVED" },
  "a deadline that can't be read": {
    headers: { "grpc-timeout": "5X" },
    bytes: [request],
    code: 3,
    reason: "ARGUMENT_INVALID",
  },
  "a request that is too large": {
    bytes: [framed(Buffer.alloc(2 * 1024 * 1024))],
    code: 8,
    reason: "MESSAGE_TOO_LARGE",
  },
};

test.each(Object.entries(malformed))(
  "%s: refused with a reason, an id and one line",
  async (_, { headers, bytes, ...refusal }) => {
    let ran = 0;
    const server = await startServer({
      users: {
        getUser: () => {
          ran += 1;
          return {};
        },
      },
    });
    const id = "the-callers-own";
    const { status } = openStream(server.grpcPort, { ...headers, "x-request-id": id }, bytes, true);
    const answer = await status;
    expect(Number(answer["grpc-status"])).toBe(refusal.code);
    expect(reasonOf(answer)).toBe(refusal.reason);
    expect(answer["x-request-id"]).toBe(id);
    await expect.poll(() => server.lines.length).toBe(1);
    expect(server.lines).toMatchObject([{ request_id: id, reason: refusal.reason, rpc: path.slice(1) }]);
    expect(ran).toBe(0);
  },
);

const wellFormed: Record<string, { headers?: OutgoingHttpHeaders; bytes: Buffer[] }> = {
  "byte by byte": { bytes: [...request].map((byte) => Buffer.from([byte])) },
  "in two parts": { bytes: [request.subarray(0, 7), request.subarray(7)] },
  "compressed by gzip": { headers: { "grpc-encoding": "gzip" }, bytes: [framed(gzipSync(message), 1)] },
  "compressed by deflate": { headers: { "grpc-encoding": "deflate" }, bytes: [framed(deflateSync(message), 1)] },
  "as it is, where it might have been compressed": { headers: { "grpc-encoding": "gzip" }, bytes: [request] },
  // More than a timer of Node takes.
  "with a deadline in eleven thousand years": { headers: { "grpc-timeout": "99999999H" }, bytes: [request] },
  "with its type named in full": { headers: { "content-type": "application/grpc+proto; x=y" }, bytes: [request] },
};

test.each(Object.entries(wellFormed))("a request that comes %s is served", async (_, { headers, bytes }) => {
  const server = await startServer({ users: { getUser: ({ userId: id }) => ({ user: { id } }) } });
  const { stream, status } = openStream(server.grpcPort, { ...headers }, bytes, true);
  const answer: Buffer[] = [];
  stream.on("data", (part: Buffer) => answer.push(part));
  expect(await status).toMatchObject({ "grpc-status": "0" });
  const { user } = fromBinary(GetUserResponseSchema, Buffer.concat(answer).subarray(5));
  expect(user?.id).toBe(userId);
  expect(server.lines).toMatchObject([{ code: "OK" }]);
});

test("a request in another format than protobuf is not taken for one", async () => {
  const server = await startServer();
  const { stream } = openStream(server.grpcPort, { "content-type": "application/grpc+json" }, [request], true);
  const [headers] = (await once(stream, "response")) as [IncomingHttpHeaders];
  expect(headers[":status"]).toBe(415);
});

test("a stranger is refused before it has sent its request", async () => {
  const server = await startServer();
  const { status } = openStream(server.grpcPort, { authorization: "Bearer nonsense" }, [request.subarray(0, 9)], false);
  expect(reasonOf(await status)).toBe("TOKEN_INVALID");
});

test("a request that does not end by its deadline is given up, and in the log", async () => {
  const server = await startServer();
  const { status } = openStream(server.grpcPort, { "grpc-timeout": "100m" }, [request], false);
  const answer = await status;
  expect(Number(answer["grpc-status"])).toBe(4);
  expect(reasonOf(answer)).toBe("DEADLINE_EXCEEDED");
  await expect.poll(() => server.lines).toMatchObject([{ reason: "DEADLINE_EXCEEDED" }]);
});

test("an answer that nobody reads is kept until the deadline, and no longer", async () => {
  const server = await startServer({ users: { getUser: () => ({ user: { id: userId } }) } });
  const unread = { initialWindowSize: 0 };
  const { stream } = openStream(server.grpcPort, { "grpc-timeout": "500m" }, [request], true, unread);
  await once(stream, "response");
  expect(server.lines).toMatchObject([{ code: "OK" }]);
  await once(stream, "close");
  expect(stream.rstCode).toBe(constants.NGHTTP2_CANCEL);
});

test("who was refused and goes on sending is stopped at the deadline", async () => {
  const server = await startServer();
  const stranger = { authorization: "Bearer nonsense", "grpc-timeout": "500m" };
  const { stream, status } = openStream(server.grpcPort, stranger, [request.subarray(0, 9)], false);
  expect(reasonOf(await status)).toBe("TOKEN_INVALID");
  await once(stream, "close");
  expect(stream.rstCode).toBe(constants.NGHTTP2_CANCEL);
});

test("a caller that goes while it still sends leaves no call open", async () => {
  const verifier = createVerifier({ secret });
  let known = 0;
  const server = await startServer({
    verifier: {
      verify: (authorization) => {
        known += 1;
        return verifier.verify(authorization);
      },
    },
  });
  const { stream } = openStream(server.grpcPort, {}, [request.subarray(0, 9)], false);
  const head = [
    `POST ${path} HTTP/1.1`,
    "host: localhost",
    "content-type: application/json",
    `authorization: Bearer ${service}`,
    "content-length: 100",
  ];
  const socket = connect(server.httpPort, "127.0.0.1", () => socket.write(`${head.join("\r\n")}\r\n\r\n{"user_id":`));
  await expect.poll(() => known).toBe(2);
  stream.session?.destroy();
  socket.destroy();
  await expect.poll(() => server.lines.length).toBe(2);
  expect(server.lines).toMatchObject([{ reason: "CANCELLED" }, { reason: "CANCELLED" }]);
  const began = performance.now();
  await server.stop(10_000);
  expect(performance.now() - began).toBeLessThan(2 * FLUSH_MS);
});
