/** `npm run proto` as CI runs it, on a copy of what it checks. */
import { spawnSync } from "node:child_process";
import { cpSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, test } from "vitest";

const ROOT = join(import.meta.dirname, "..");

const copy = mkdtempSync(join(tmpdir(), "doorbuster-proto-"));
afterAll(() => rmSync(copy, { recursive: true, force: true }));
for (const name of ["proto", "gen", "scripts", "buf.yaml", "buf.gen.yaml", "package.json"]) {
  cpSync(join(ROOT, name), join(copy, name), { recursive: true });
}
symlinkSync(join(ROOT, "node_modules"), join(copy, "node_modules"));

const path = `${join(ROOT, "node_modules/.bin")}:${process.env.PATH}`;

function check(): { status: number | null; output: string } {
  const args = ["scripts/generate.ts", "--check"];
  const env = { ...process.env, PATH: path };
  const { status, stdout, stderr } = spawnSync(process.execPath, args, { cwd: copy, encoding: "utf8", env });
  return { status, output: stdout + stderr };
}

/** Runs the check with other text in one file. */
function checkWith(file: string, change: (text: string) => string) {
  const before = readFileSync(join(copy, file), "utf8");
  writeFileSync(join(copy, file), change(before));
  try {
    return check();
  } finally {
    writeFileSync(join(copy, file), before);
  }
}

test("the contract is as buf wants it, breaks nobody, and gen/ is made from it", () => {
  expect(check()).toMatchObject({ status: 0 });
});

test("a change that breaks clients is refused", () => {
  const { status, output } = checkWith("proto/shop/v1/user.proto", (text) =>
    text.replace(/(string name = )\d+/, "$130"),
  );
  expect(output).toMatch(/user\.proto.*"name".*deleted/);
  expect(status).not.toBe(0);
});

test("a file that is gone is such a change", () => {
  rmSync(join(copy, "proto/shop/v1/ranking.proto"));
  const { status, output } = check();
  cpSync(join(ROOT, "proto"), join(copy, "proto"), { recursive: true });
  expect(output).toMatch(/ranking\.proto.*deleted/);
  expect(status).not.toBe(0);
});

test("without the released contract the check fails instead of passing over it", () => {
  rmSync(join(copy, "proto/released.binpb"));
  const { status, output } = check();
  expect(output).toContain("proto/released.binpb is gone");
  expect(status).toBe(1);
});
