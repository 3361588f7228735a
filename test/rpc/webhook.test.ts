/** Plain HTTP of other services, at paths that are no RPCs. */
import { Agent, request } from "node:http";
import { text } from "node:stream/consumers";
import { expect, test } from "vitest";
import { MAX_REQUEST_BYTES } from "../../src/rpc/door.ts";
import type { Webhook } from "../../src/rpc/webhook.ts";
import { startServer } from "./server.ts";

const PATH = "/hooks/one";

const serverWith = (webhook: Webhook) => startServer({ webhooks: new Map([[PATH, webhook]]) });

/** A POST over the connections of an agent. */
function post(port: number, body: string | Buffer, agent: Agent, path = PATH) {
  return new Promise<{ status: number | undefined; text: string; connection: string | undefined }>(
    (resolve, reject) => {
      const headers = { "content-length": Buffer.byteLength(body), "x-request-id": "mine" };
      const sent = request({ host: "127.0.0.1", port, path, method: "POST", agent, headers });
      sent.once("error", reject);
      sent.once("response", async (response) => {
        const { connection } = response.headers;
        resolve({ status: response.statusCode, text: await text(response), connection });
      });
      sent.end(body);
    },
  );
}

test("a webhook gets the body as it came, answers a status, and leaves one line in the log", async () => {
  const bytes = Buffer.from([0, 255, 10, 13]);
  let got: unknown;
  const server = await serverWith(async (body, headers) => {
    got = { body, id: headers["x-request-id"] };
    return 202;
  });
  const agent = new Agent();
  expect(await post(server.httpPort, bytes, agent, `${PATH}?x=1`)).toMatchObject({ status: 202, text: "Accepted\n" });
  expect(got).toEqual({ body: bytes, id: "mine" });
  expect(server.lines).toMatchObject([{ msg: "webhook", request_id: "mine", rpc: "hooks/one", code: "202" }]);
  expect((await post(server.httpPort, "", agent, "/hooks/other")).status).toBe(404);
});

test("what it throws is answered with 503, and stays in the log", async () => {
  const server = await serverWith(async () => {
    throw new Error("hunter2");
  });
  const answer = await post(server.httpPort, "{}", new Agent());
  expect(answer).toMatchObject({ status: 503, text: "Service Unavailable\n" });
  expect(server.lines).toMatchObject([
    { msg: "a webhook failed", err: { message: "hunter2" } },
    { msg: "webhook", code: "503" },
  ]);
});

test("a body that is too large is not given to it, and the connection serves the next request", async () => {
  const sizes: number[] = [];
  const server = await serverWith(async (body) => {
    sizes.push(body.length);
    return 200;
  });
  const agent = new Agent({ keepAlive: true, maxSockets: 1 });
  expect((await post(server.httpPort, "x".repeat(2 * MAX_REQUEST_BYTES), agent)).status).toBe(413);
  expect((await post(server.httpPort, "x".repeat(MAX_REQUEST_BYTES), agent)).status).toBe(200);
  expect(sizes).toEqual([MAX_REQUEST_BYTES]);
  agent.destroy();
});

test("one whose sender leaves in the middle of its body is not given to it", async () => {
  const bodies: Buffer[] = [];
  const server = await serverWith(async (body) => {
    bodies.push(body);
    return 200;
  });
  const headers = { "content-length": 100 };
  const left = request({ host: "127.0.0.1", port: server.httpPort, path: PATH, method: "POST", headers });
  left.on("error", () => {});
  left.write("half");
  await new Promise((resolve) => left.once("socket", (socket) => socket.once("connect", resolve)));
  left.destroy();
  expect((await post(server.httpPort, "whole", new Agent())).status).toBe(200);
  expect(bodies.map(String)).toEqual(["whole"]);
});

test("a stop lets it finish", async () => {
  const entered = Promise.withResolvers<void>();
  const finish = Promise.withResolvers<void>();
  const server = await serverWith(async () => {
    entered.resolve();
    await finish.promise;
    return 200;
  });
  const agent = new Agent({ keepAlive: true });
  const answer = post(server.httpPort, "{}", agent);
  await entered.promise;
  const stopped = server.stop(5_000);
  finish.resolve();
  expect(await answer).toMatchObject({ status: 200, connection: "close" });
  await stopped;
});
