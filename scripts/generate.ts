/**
 * Generates `gen/` from `proto/`.
 *
 *     npm run gen                 write gen/
 *     npm run proto               lint, format and breaking-change checks, and gen/ must be fresh
 *     npm run gen -- --release    accept today's contract as the one clients depend on
 */
import { execFileSync } from "node:child_process";
import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { printValidateProto } from "./validate-proto.ts";

/** The contract as last released: `buf breaking` compares against it. */
const RELEASED = "proto/released.binpb";

const { values: options } = parseArgs({
  options: { check: { type: "boolean" }, release: { type: "boolean" } },
});

function buf(...args: string[]): void {
  execFileSync(join("node_modules", ".bin", "buf"), args, { stdio: "inherit" });
}

/** All files below `folder` as relative path -> content. */
function contents(folder: string): Map<string, string> {
  const files = readdirSync(folder, { recursive: true, withFileTypes: true }).filter((entry) => entry.isFile());
  return new Map(
    files.map((file) => {
      const path = join(file.parentPath, file.name);
      return [path.slice(folder.length + 1), readFileSync(path, "utf8")];
    }),
  );
}

/** Fails with the names of the files that differ between what is committed and what buf makes now. */
function assertFresh(committed: string, made: string): void {
  const before = existsSync(committed) ? contents(committed) : new Map<string, string>();
  const after = contents(made);
  const stale = [...new Set([...before.keys(), ...after.keys()])].filter(
    (file) => before.get(file) !== after.get(file),
  );
  if (stale.length > 0) {
    console.error(`${committed}/ is not what proto/ generates (${stale.join(", ")}): run \`npm run gen\``);
    process.exit(1);
  }
}

if (options.check && !existsSync(RELEASED)) {
  console.error(`${RELEASED} is gone, and with it what clients depend on: restore it from the history`);
  process.exit(1);
}
// Node runs this; protoc-gen-es and buf find each other through PATH, as npm scripts set it.
mkdirSync("build/proto/buf/validate", { recursive: true });
writeFileSync("build/proto/buf/validate/validate.proto", printValidateProto());

if (options.check) {
  buf("lint");
  buf("format", "proto", "--diff", "--exit-code");
  buf("breaking", "proto", "--against", RELEASED, "--exclude-imports");
}
rmSync("build/gen", { recursive: true, force: true });
buf("generate", "--output", "build");
if (options.check) {
  assertFresh("gen", "build/gen");
} else {
  buf("format", "proto", "--write");
  rmSync("gen", { recursive: true, force: true });
  cpSync("build/gen", "gen", { recursive: true });
}
if (options.release) {
  buf("build", "proto", "--output", RELEASED);
}
