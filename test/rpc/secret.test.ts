import { execFile } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { decodeJwt } from "jose";
import { expect, onTestFinished, test } from "vitest";
import { Role } from "../../gen/shop/v1/access_pb.ts";
import { createVerifier } from "../../src/rpc/auth.ts";
import { loadSecret } from "../../src/rpc/secret.ts";

const run = promisify(execFile);

function temporary(): string {
  const folder = mkdtempSync(join(tmpdir(), "doorbuster-secret-"));
  onTestFinished(() => rmSync(folder, { recursive: true, force: true }));
  return join(folder, "data");
}

function token(args: string[], env: Record<string, string>) {
  const clean = { PATH: process.env.PATH, ...env };
  return run(process.execPath, ["scripts/token.ts", ...args], { env: clean }).catch((error) => error);
}

test("the secret is made at the first use, for the owner only, and is the same ever after", () => {
  const dataDir = temporary();
  const first = loadSecret({ dataDir });
  expect(first.length).toBeGreaterThanOrEqual(32);
  expect(statSync(join(dataDir, "jwt-secret")).mode & 0o777).toBe(0o600);
  expect(loadSecret({ dataDir })).toEqual(first);
});

test("a secret that is too short is refused by its name", () => {
  expect(() => loadSecret({ secret: "short", dataDir: temporary() })).toThrow("JWT_SECRET is too short");
  const dataDir = temporary();
  loadSecret({ dataDir });
  writeFileSync(join(dataDir, "jwt-secret"), "");
  expect(() => loadSecret({ dataDir })).toThrow("jwt-secret is too short");
});

test("processes that start together agree on the secret", async () => {
  const dataDir = temporary();
  const tokens = await Promise.all([1, 2, 3].map(() => token(["--role", "service"], { DATA_DIR: dataDir })));
  const verifier = createVerifier({ secret: loadSecret({ dataDir }) });
  for (const { stdout } of tokens) {
    const caller = await verifier.verify(`Bearer ${stdout.trim()}`);
    expect(caller).toEqual({ subject: "service", roles: new Set([Role.SERVICE]) });
  }
});

test("the token script prints a token that the service takes", async () => {
  const DATA_DIR = temporary();
  const user = await token(["--user", "0199d1f2", "--ttl", "2h"], { DATA_DIR });
  const claims = decodeJwt(user.stdout.trim());
  expect(claims).toMatchObject({ sub: "0199d1f2", roles: ["user"], exp: Number(claims.iat) + 7_200 });
  const JWT_SECRET = "from the environment, and long enough";
  // The spaces are dropped, as the service does.
  const env = { DATA_DIR, JWT_SECRET: ` ${JWT_SECRET} `, JWT_ISSUER: " me", JWT_AUDIENCE: "shop " };
  const roles = await token(["--role", "service", "--role", "admin"], env);
  expect(decodeJwt(roles.stdout.trim())).toMatchObject({ roles: ["service", "admin"], iss: "me", aud: "shop" });
  const rules = { issuer: "me", audience: "shop" };
  const verifier = createVerifier({ secret: Buffer.from(JWT_SECRET) }, rules);
  await expect(verifier.verify(`Bearer ${roles.stdout.trim()}`)).resolves.toMatchObject({ subject: "service+admin" });
  expect(readFileSync(join(DATA_DIR, "jwt-secret"), "utf8").trim()).not.toBe(JWT_SECRET);
});

test.each([
  [[], {}, "use `npm run -s token"],
  [["--role", "root"], {}, "use `npm run -s token"],
  [["--role", "admin", "--user", "x"], {}, "use `npm run -s token"],
  [["--role", "admin", "--ttl", "soon"], {}, "--ttl soon is not a time"],
  [["--what"], {}, "Unknown option '--what'"],
  [["--role", "admin"], { JWKS_URL: "https://issuer.example/jwks" }, "tokens come from the issuer"],
  [["--role", "admin"], { JWT_SECRET: "short" }, "JWT_SECRET must be at least 32 characters long"],
] as [string[], Record<string, string>, string][])(
  "the token script refuses %j %j in one line",
  async (args, env, line) => {
    const { stdout, stderr, code } = await token(args, { DATA_DIR: temporary(), ...env });
    expect({ stdout, code }).toEqual({ stdout: "", code: 1 });
    expect(stderr).toMatch(/^[^\n]+\n$/);
    expect(stderr).toContain(line);
  },
);
