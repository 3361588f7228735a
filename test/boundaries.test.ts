/**
 * The table of who may import whom, as the linter holds it: each line that breaks a rule is put into a copy of the
 * sources, and the linter must find that line and no other.
 */
import { execFileSync, spawnSync } from "node:child_process";
import { appendFileSync, cpSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";

const ROOT = join(import.meta.dirname, "..");
const BIOME = join(ROOT, "node_modules/.bin/biome");

const copy = mkdtempSync(join(tmpdir(), "doorbuster-lint-"));
afterAll(() => rmSync(copy, { recursive: true, force: true }));

/** What a file must not import, by the file. */
const forbidden: Record<string, string[]> = {
  "src/error.ts": ["node:fs", "./config.ts", "pino"],
  "src/config.ts": ["./app.ts", "./db/orm.ts", "./rpc/auth.ts", "./user/user.entity.ts"],
  "src/banner.ts": ["./order/expiry.ts", "./user/user.entity.ts", "./ranking/ranking.service.ts", "../gen/x.ts"],
  "src/gateways.ts": ["./app.ts", "./order/order.entity.ts", "./rpc/server.ts", "../gen/shop/v1/order_pb.ts"],
  "src/started.ts": ["./payment/payment.handler.ts", "./audit/invariants.ts"],
  "src/jobs.ts": [
    "./app.ts",
    "./rpc/server.ts",
    "./order/order.handler.ts",
    "./payment/payment.message.ts",
    "../gen/shop/v1/order_pb.ts",
  ],
  "src/db/orm.ts": [
    "../app.ts",
    "../jobs.ts",
    "../outbox/event.entity.ts",
    "../rpc/auth.ts",
    "../user/user.entity.ts",
    "../../gen/x.ts",
  ],
  "src/outbox/event.entity.ts": [
    "../app.ts",
    "../jobs.ts",
    "../rpc/auth.ts",
    "../order/order.entity.ts",
    "../../gen/shop/v1/order_pb.ts",
  ],
  "src/rpc/auth.ts": [
    "../app.ts",
    "../jobs.ts",
    "../user/user.entity.ts",
    "../user/user.service.ts",
    "../user/user.handler.ts",
  ],
  "src/user/user.entity.ts": [
    "../product/product.entity.ts",
    "../balance/balance.entity.ts",
    "../ranking/ranking.entity.ts",
    "./user.service.ts",
    "./user.handler.ts",
    "../db/database.ts",
    "../outbox/event.entity.ts",
    "../rpc/auth.ts",
    "../config.ts",
    "../../gen/shop/v1/user_pb.ts",
    "@mikro-orm/postgresql",
    "node:crypto",
  ],
  "src/ranking/ranking.entity.ts": ["../order/order.entity.ts"],
  "src/coupon/coupon.entity.ts": ["../cart/cart.entity.ts", "../order/order.entity.ts"],
  "src/cart/cart.entity.ts": [
    "../order/order.entity.ts",
    "../payment/payment.entity.ts",
    "../ranking/ranking.entity.ts",
  ],
  "src/order/order.entity.ts": ["../payment/payment.entity.ts", "../ranking/ranking.entity.ts", "./order.service.ts"],
  "src/payment/payment.entity.ts": ["../ranking/ranking.entity.ts", "../order/order.service.ts"],
  "src/user/user.service.ts": [
    "../../gen/shop/v1/user_pb.ts",
    "@connectrpc/connect",
    "@bufbuild/protobuf",
    "@grpc/grpc-js",
    "grpc-health-check",
    "../rpc/handler.ts",
    "../config.ts",
    "../app.ts",
    "../jobs.ts",
    "../balance/balance.service.ts",
    "../balance/balance.handler.ts",
    "./user.handler.ts",
    "../balance/balance.message.ts",
  ],
  "src/payment/settlement.ts": [
    "../order/order.service.ts",
    "./payment.service.ts",
    "../../gen/shop/v1/payment_pb.ts",
    "stripe",
  ],
  "src/payment/stripe.ts": ["./external.ts", "../db/database.ts", "../order/order.entity.ts", "../rpc/webhook.ts"],
  "src/user/user.handler.ts": [
    "@mikro-orm/core",
    "@mikro-orm/postgresql",
    "../balance/balance.entity.ts",
    "../balance/balance.service.ts",
    "../balance/balance.handler.ts",
    "../db/database.ts",
    "../outbox/event.entity.ts",
    "../rpc/auth.ts",
    "../app.ts",
    "../jobs.ts",
  ],
  "src/balance/balance.message.ts": [
    "./balance.service.ts",
    "./balance.handler.ts",
    "../user/user.entity.ts",
    "../payment/payment.message.ts",
    "../rpc/handler.ts",
    "../db/database.ts",
    "@mikro-orm/core",
  ],
  "src/balance/balance.service.ts": ["./balance.message.ts"],
};

/** What a file may import; it is there already or must stay possible. */
const allowed: Record<string, string[]> = {
  "src/gateways.ts": ["./payment/sandbox.ts", "./db/database.ts", "./rpc/webhook.ts", "./config.ts"],
  "src/jobs.ts": ["./cart/cart.service.ts", "./coupon/coupon.entity.ts", "./outbox/tail.ts", "./config.ts"],
  "src/banner.ts": ["./db/database.ts", "./outbox/feed.ts", "./config.ts", "pino"],
  "src/outbox/event.entity.ts": ["../db/page.ts", "../error.ts"],
  "src/rpc/server.ts": ["../db/command.ts", "../../gen/shop/v1/user_pb.ts", "../error.ts"],
  "src/cart/cart.entity.ts": ["../user/user.entity.ts", "../balance/balance.entity.ts", "../coupon/coupon.entity.ts"],
  "src/order/order.entity.ts": ["../cart/cart.entity.ts"],
  "src/payment/payment.entity.ts": ["../cart/cart.entity.ts"],
  "src/user/user.service.ts": [
    "../payment/payment.entity.ts",
    "../outbox/event.entity.ts",
    "../error.ts",
    "node:fs/promises",
  ],
  "src/user/user.handler.ts": [
    "../../gen/shop/v1/order_pb.ts",
    "@bufbuild/protobuf/wkt",
    "../payment/payment.message.ts",
  ],
};

type Finding = { rule: string; file: string; line: number };

/** Lints the copy: every finding with its line. */
function lint(): Finding[] {
  const args = ["lint", "--reporter=github", "--max-diagnostics=none", "."];
  const { stdout } = spawnSync(BIOME, args, { cwd: copy, encoding: "utf8" });
  const findings = stdout.matchAll(/^::error title=([\w/]+),file=[^,]*?((?:src|gen)\/[^,]+),line=(\d+)/gm);
  return [...findings].map(([, rule = "", file = "", line]) => ({
    rule: rule.split("/").at(-1) ?? "",
    file,
    line: Number(line),
  }));
}

beforeAll(() => {
  for (const file of ["src", "gen", "biome.json", "package.json", "tsconfig.json"]) {
    cpSync(join(ROOT, file), join(copy, file), { recursive: true });
  }
  symlinkSync(join(ROOT, "node_modules"), join(copy, "node_modules"));
});

/** Adds lines to a file of the copy. Returns the number of the first. */
function append(file: string, lines: string[]): number {
  const path = join(copy, file);
  const first = readFileSync(path, "utf8").trimEnd().split("\n").length + 1;
  appendFileSync(path, `${lines.join("\n")}\n`);
  return first;
}

function restore(): void {
  rmSync(join(copy, "src"), { recursive: true });
  cpSync(join(ROOT, "src"), join(copy, "src"), { recursive: true });
}

test("the sources as they are break no rule", () => {
  execFileSync(BIOME, ["lint", "--error-on-warnings", "."], { cwd: copy, stdio: "pipe" });
});

test("every import that the table forbids is found", () => {
  const expected = Object.entries(forbidden).flatMap(([file, modules]) => {
    const first = append(
      file,
      modules.map((module) => `import ${JSON.stringify(module)};`),
    );
    return modules.map((module, i) => `${file}:${first + i} ${module}`);
  });
  const found = new Set(lint().flatMap((it) => (it.rule === "noRestrictedImports" ? `${it.file}:${it.line}` : [])));
  restore();
  expect(expected.filter((line) => !found.has(line.split(" ")[0] ?? ""))).toEqual([]);
  expect(found.size).toBe(expected.length);
});

test("imports that the table allows are not", () => {
  for (const [file, modules] of Object.entries(allowed)) {
    append(
      file,
      modules.map((module) => `import ${JSON.stringify(module)};`),
    );
  }
  const found = lint().filter(({ rule }) => rule === "noRestrictedImports");
  restore();
  expect(found).toEqual([]);
});

test("an import cycle, also one of types alone, an unused name, a long function and a long file are found", () => {
  const lines = (count: number) => Array.from({ length: count }, (_, i) => `  console.log(${i});`).join("\n");
  const files = {
    "a.ts": 'import type { B } from "./b.ts";\nexport type A = B | 1;\n',
    "b.ts": 'import type { A } from "./a.ts";\nexport type B = A | 2;\n',
    "unused.ts": 'import { join } from "node:path";\nconst name = 1;\nexport function f(parameter: number): void {}\n',
    "function.ts": `export function f(): void {\n${lines(71)}\n}\n`,
    "file.ts": `${lines(301)}\n`,
  };
  for (const [name, text] of Object.entries(files)) writeFileSync(join(copy, "src/db", name), text);
  const found = lint().map(({ rule, file }) => `${file} ${rule}`);
  restore();
  expect(found.sort()).toEqual([
    "src/db/a.ts noImportCycles",
    "src/db/b.ts noImportCycles",
    "src/db/file.ts noExcessiveLinesPerFile",
    "src/db/function.ts noExcessiveLinesPerFunction",
    "src/db/unused.ts noUnusedFunctionParameters",
    "src/db/unused.ts noUnusedImports",
    "src/db/unused.ts noUnusedVariables",
  ]);
});
