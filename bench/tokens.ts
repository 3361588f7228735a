/** Who calls: headers made in advance, since a signature takes longer than a call. */
import { sign } from "../src/rpc/auth.ts";
import { idOf } from "./data.ts";
import { headerBlock } from "./hpack.ts";

const known = new Map<string, Promise<string[]>>();

function tokensOf(secret: string, users: number): Promise<string[]> {
  const tokens = known.get(secret);
  if (tokens) return tokens;
  const key = Buffer.from(secret);
  const made = Promise.all(
    Array.from({ length: users }, (_, index) =>
      sign(key, { subject: idOf("user", index), roles: ["user"], ttl: "24h" }),
    ),
  );
  known.set(secret, made);
  return made;
}

/** The headers of a call of that path, for each user. */
export async function headersOf(path: string, secret: string, users: number): Promise<Buffer[]> {
  const common = { ":path": path, ":authority": "127.0.0.1", "content-type": "application/grpc", te: "trailers" };
  const tokens = await tokensOf(secret, users);
  return tokens.map((token) => headerBlock({ ...common, authorization: `Bearer ${token}` }));
}
