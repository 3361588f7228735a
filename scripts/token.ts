/**
 * Prints a token for the service as it is configured in the environment.
 *
 *     npm run -s token -- --role admin
 *     npm run -s token -- --role service --role admin --ttl 30d
 *     npm run -s token -- --user 0199d1f2-6b1a-7c3e-9d53-3f1f0f9c2a11
 */
import { parseArgs } from "node:util";
import { type Config, readConfig } from "../src/config.ts";
import { sign } from "../src/rpc/auth.ts";
import { loadSecret } from "../src/rpc/secret.ts";

const USAGE =
  "use `npm run -s token -- --role admin|service` (may be repeated) or `--user ID`, and optionally `--ttl 24h`";

type Role = "admin" | "service";

function isRole(name: string): name is Role {
  return name === "admin" || name === "service";
}

function readArguments(): { subject: string; roles: readonly (Role | "user")[]; ttl: string } {
  const { values } = parseArgs({
    options: {
      role: { type: "string", multiple: true, default: [] },
      user: { type: "string" },
      ttl: { type: "string", default: "24h" },
    },
  });
  const { role, user, ttl } = values;
  if (user && role.length === 0) return { subject: user, roles: ["user"], ttl };
  if (user === undefined && role.length > 0 && role.every(isRole)) return { subject: role.join("+"), roles: role, ttl };
  throw new Error(USAGE);
}

async function main(config: Config): Promise<string> {
  if (config.jwksUrl)
    throw new Error(`tokens come from the issuer whose keys are at ${config.jwksUrl}: ask it for one`);
  const claims = readArguments();
  const secret = loadSecret({ secret: config.jwtSecret, dataDir: config.dataDir });
  try {
    return await sign(secret, { ...claims, issuer: config.jwtIssuer, audience: config.jwtAudience });
  } catch {
    throw new Error(`--ttl ${claims.ttl} is not a time: use 15m, 24h or 30d`);
  }
}

try {
  console.log(await main(readConfig(process.env)));
} catch (error) {
  console.error((error as Error).message.split("\n", 1)[0]);
  process.exitCode = 1;
}
