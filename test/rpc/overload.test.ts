/** While too many writes wait: the next ones are refused before anything is done for them. */
import { expect, test, vi } from "vitest";
import { UserService } from "../../gen/shop/v1/user_pb.ts";
import { DomainError } from "../../src/error.ts";
import { service, startServer, throughEachDoor } from "./server.ts";

const { createUser, getUser } = UserService.method;

test("writes are refused unread, whoever sends them; reads are answered; and writes again when there is room", async () => {
  let full = true;
  const refusal = new DomainError("OVERLOADED", "too many requests are waiting", {}, { retryAfterMs: 100 });
  const verify = vi.fn(() => {
    throw new DomainError("TOKEN_INVALID", "nobody is let in");
  });
  const overload = () => (full ? refusal : undefined);
  const strict = await startServer({ overload, verifier: { verify } });
  await throughEachDoor(strict, async (door) => {
    const refused = door.unary(createUser, { requestId: "", name: "" }, { token: service });
    await expect(refused).rejects.toMatchObject({ code: "RESOURCE_EXHAUSTED", reason: "OVERLOADED", retryMs: 100 });
  });
  expect(verify).not.toHaveBeenCalled();

  const server = await startServer({ overload });
  await throughEachDoor(server, async (door) => {
    full = false;
    const { message } = await door.unary(createUser, { requestId: door.name, name: "A" }, { token: service });
    full = true;
    const again = door.unary(createUser, { requestId: door.name, name: "A" }, { token: service });
    await expect(again).rejects.toMatchObject({ reason: "OVERLOADED" });
    const userId = message.user?.id ?? "";
    expect((await door.unary(getUser, { userId }, { token: service })).message.user?.name).toBe("A");
  });
});
