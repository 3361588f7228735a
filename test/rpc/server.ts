/** A real server on free ports with services kept in memory: enough of the contract to see what the doors do. */
import { randomUUIDv7 } from "node:crypto";
import { PassThrough } from "node:stream";
import type { ServiceImpl } from "@connectrpc/connect";
import { type Logger, pino } from "pino";
import { onTestFinished } from "vitest";
import { RankingService } from "../../gen/shop/v1/ranking_pb.ts";
import { UserService } from "../../gen/shop/v1/user_pb.ts";
import { Replayed, type Write } from "../../src/db/command.ts";
import { DomainError } from "../../src/error.ts";
import { createVerifier, sign, type TokenClaims, type Verifier } from "../../src/rpc/auth.ts";
import { write } from "../../src/rpc/handler.ts";
import { route, serve } from "../../src/rpc/server.ts";
import type { Webhooks } from "../../src/rpc/webhook.ts";
import { connectClient, type DoorClient, grpcClient, grpcWebClient } from "./clients.ts";

export const secret = Buffer.from("a secret of the tests, long enough for HS256");

/** A token that is good for an hour. */
export function token(roles: TokenClaims["roles"], subject: string = randomUUIDv7()): Promise<string> {
  return sign(secret, { subject, roles, ttl: "1h" });
}

export const service = await token(["service"], "backend");

type User = { id: string; name: string };

/** Keeps users, and answers of writes by request id, as the database does. */
function createUsers(): ServiceImpl<typeof UserService> {
  const users = new Map<string, User>();
  const answers = new Map<string, { fingerprint: Buffer; response: Uint8Array }>();

  async function once(call: Write, work: () => User): Promise<User> {
    const key = `${call.scope} ${call.rpc} ${call.requestId}`;
    const known = answers.get(key);
    if (known?.fingerprint.equals(call.fingerprint)) throw new Replayed(known.response);
    if (known) throw new DomainError("REQUEST_ID_REUSED", "this request id was used for another request");
    const result = work();
    answers.set(key, { fingerprint: Buffer.from(call.fingerprint), response: call.encode(result) });
    return result;
  }

  return {
    createUser: write(
      UserService.method.createUser,
      (request, call) =>
        once(call, () => {
          const user = { id: randomUUIDv7(), name: request.name };
          users.set(user.id, user);
          return user;
        }),
      (user) => ({ user }),
    ),
    getUser: ({ userId }) => {
      const user = users.get(userId);
      if (!user) throw new DomainError("USER_NOT_FOUND", "there is no such user", { user_id: userId });
      return { user };
    },
  };
}

const ranking: ServiceImpl<typeof RankingService> = {
  listTopProducts: () => ({ products: [] }),
  async *watchTopProducts(_request, { signal }) {
    for (let rank = 1; !signal.aborted; rank++) {
      yield { products: [{ rank }] };
      if (rank === 3) await new Promise((resolve) => signal.addEventListener("abort", resolve, { once: true }));
    }
  },
};

export type Overrides = {
  users?: Partial<ServiceImpl<typeof UserService>>;
  ranking?: Partial<ServiceImpl<typeof RankingService>>;
  verifier?: Verifier;
  corsOrigins?: string[];
  ready?: () => Promise<boolean>;
  webhooks?: Webhooks;
  overload?: () => DomainError | undefined;
  log?: Logger;
};

/** Opens both doors on free ports and closes them when the test has ended. */
export async function startServer(overrides: Overrides = {}) {
  const lines: Record<string, unknown>[] = [];
  const sink = new PassThrough().on("data", (line) => lines.push(JSON.parse(String(line))));
  const served = await serve({
    host: "127.0.0.1",
    grpcPort: 0,
    httpPort: 0,
    corsOrigins: overrides.corsOrigins ?? [],
    routes: [
      route(UserService, { ...createUsers(), ...overrides.users }),
      route(RankingService, { ...ranking, ...overrides.ranking }),
    ],
    verifier: overrides.verifier ?? createVerifier({ secret }),
    log: overrides.log ?? pino(sink),
    ready: overrides.ready ?? (async () => true),
    webhooks: overrides.webhooks,
    ...(overrides.overload && { overload: overrides.overload }),
  });
  const grpc = grpcClient(served.grpcPort);
  const doors: DoorClient[] = [
    grpc,
    connectClient(served.httpPort),
    connectClient(served.httpPort, false),
    grpcWebClient(served.httpPort),
  ];
  onTestFinished(async () => {
    for (const door of doors) door.close();
    await served.stop(0);
  });
  return { ...served, doors, grpc, connect: doors[1] as DoorClient, lines };
}

/** Runs the same steps through every client, so that no door behaves in a way of its own. */
export async function throughEachDoor<T>(
  server: { doors: readonly DoorClient[] },
  steps: (door: DoorClient) => Promise<T>,
): Promise<Map<string, T>> {
  const results = new Map<string, T>();
  for (const door of server.doors) results.set(door.name, await steps(door));
  return results;
}
