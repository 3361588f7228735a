import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, statSync, watch, writeFileSync } from "node:fs";
import { join } from "node:path";
import { pino } from "pino";
import { describe, expect, test } from "vitest";
import { findOwner } from "../src/db/embedded-binaries.ts";
import { commandOf } from "../src/db/embedded-lock.ts";
import { cleanUps, directory, killed, postmaster, query, service, start, stopped, urlOf } from "./support/embedded.ts";
import type { Run } from "./support/processes.ts";

describe("the cluster", () => {
  test("is private, durable, and the same on every machine", async () => {
    const dataDir = directory();
    const lines: string[] = [];
    const postgres = await start(dataDir, pino({ level: "trace" }, { write: (line) => void lines.push(line) }));
    const { password, hostname } = new URL(postgres.url);
    expect(hostname).toBe("127.0.0.1");
    expect(password).toMatch(/^[\w-]{32}$/);
    expect(statSync(join(dataDir, "postgres-password")).mode & 0o777).toBe(0o600);
    expect(lines.join()).not.toContain(password);
    if (process.platform === "linux") {
      const pid = postmaster(join(dataDir, "postgres"));
      expect(readFileSync(`/proc/${pid}/cmdline`, "utf8")).not.toContain(password);
      expect(readFileSync(`/proc/${pid}/environ`, "utf8")).not.toContain("VITEST");
    }
    const settings = {
      data_checksums: "on",
      fsync: "on",
      full_page_writes: "on",
      listen_addresses: "127.0.0.1",
      password_encryption: "scram-sha-256",
      server_encoding: "UTF8",
      synchronous_commit: "on",
      unix_socket_directories: "",
    };
    const names = Object.keys(settings).map((name) => `'${name}'`);
    const rows = await query(postgres.url, `select name, setting from pg_settings where name in (${names})`);
    expect(Object.fromEntries(rows.map((row) => [row.name, row.setting]))).toEqual(settings);
    const rules = await query(postgres.url, "select distinct auth_method from pg_hba_file_rules");
    expect(rules).toEqual([{ auth_method: "scram-sha-256" }]);
    await expect(query(postgres.url.replace(password, "wrong"), "select 1")).rejects.toThrow(/authentication failed/);
  });

  test("keeps its data when it is stopped and started", async () => {
    const dataDir = directory();
    const first = await start(dataDir);
    await query(first.url, "create table kept as select 7 as n");
    await first.stop();
    const second = await start(dataDir);
    expect(await query(second.url, "select n from kept")).toEqual([{ n: 7 }]);
  });

  test("is not replaced when its password file is gone", async () => {
    const dataDir = directory();
    await (await start(dataDir)).stop();
    const file = join(dataDir, "postgres-password");
    renameSync(file, `${file}.away`);
    await expect(start(dataDir)).rejects.toThrow(`${file} is gone`);
    renameSync(`${file}.away`, file);
    await start(dataDir);
  });
});

describe("a service that was killed", () => {
  test("loses nothing: the next start stops the Postgres left behind and takes over", async () => {
    const dataDir = directory();
    const victim = service(dataDir);
    await query(await urlOf(victim), "create table kept as select 7 as n");
    await killed(victim);
    const orphan = postmaster(join(dataDir, "postgres"));
    expect(commandOf(orphan)).toContain("postgres");
    const next = await start(dataDir);
    // Empty for one that nobody has waited for yet.
    expect(commandOf(orphan) ?? "").toBe("");
    expect(await query(next.url, "select n from kept")).toEqual([{ n: 7 }]);
  });

  test("together with its Postgres: the next start recovers", async () => {
    const dataDir = directory();
    const victim = service(dataDir);
    await query(await urlOf(victim), "create table kept as select 7 as n");
    process.kill(postmaster(join(dataDir, "postgres")), "SIGKILL");
    await killed(victim);
    const next = await start(dataDir);
    expect(await query(next.url, "select n from kept")).toEqual([{ n: 7 }]);
  });

  test("while it made the cluster: the next start makes it anew", async () => {
    const dataDir = directory();
    mkdirSync(dataDir);
    const victim = service(dataDir);
    // Its exit too ends the wait, so that a failure shows as one.
    for await (const _ of notices(dataDir, victim)) {
      if (readdirSync(dataDir).some((name) => name.startsWith("postgres.init-"))) break;
    }
    await killed(victim);
    expect(existsSync(join(dataDir, "postgres"))).toBe(false);
    const next = await start(dataDir);
    expect(await query(next.url, "select 1 as n")).toEqual([{ n: 1 }]);
    // The initdb of the victim may outlive it for a moment; the start after this one clears what it writes.
    const files = readdirSync(dataDir).filter((name) => !name.startsWith("postgres.init-"));
    expect(files.sort()).toEqual(["database-url", "lock", "postgres", "postgres-password"]);
  });

  async function* notices(path: string, started: Run): AsyncGenerator<void> {
    const stop = new AbortController();
    started.exited.finally(() => stop.abort());
    const watcher = watch(path, { signal: stop.signal });
    while (!stop.signal.aborted) {
      await once(watcher, "change");
      yield;
    }
  }

  test("and its pids are those of other programs by now: the next start goes on", async () => {
    const dataDir = directory();
    await (await start(dataDir)).stop();
    // The user that runs Postgres can signal this one, so Postgres alone would take it for a postmaster.
    const other = spawn("sleep", ["1000"], { ...findOwner(), cwd: "/", stdio: "ignore" });
    cleanUps.push(() => other.kill());
    await once(other, "spawn");
    writeFileSync(join(dataDir, "lock"), `${other.pid}\nanother start\n`);
    const pidFile = join(dataDir, "postgres/postmaster.pid");
    writeFileSync(pidFile, `${other.pid}\n${join(dataDir, "postgres")}\n1\n5432\n\n127.0.0.1\n`);
    const next = await start(dataDir);
    expect(await query(next.url, "select 1 as n")).toEqual([{ n: 1 }]);
    expect(other.exitCode ?? other.signalCode).toBeNull();
  });
});

describe("a service that runs", () => {
  test("keeps a second one out of its data directory", async () => {
    const dataDir = directory();
    const first = await start(dataDir);
    const { code, stderr } = await service(dataDir).exited;
    expect(stderr).toBe(`DATA_DIR ${dataDir} is in use by process ${process.pid}\n`);
    expect(code).toBe(1);
    expect(await query(first.url, "select 1 as n")).toEqual([{ n: 1 }]);
  });

  test("is the only one of several that start at once after one was killed", async () => {
    const dataDir = directory();
    mkdirSync(dataDir);
    writeFileSync(join(dataDir, "lock"), `${process.pid}\nanother start\n`);
    const starts = Array.from({ length: 5 }, () => service(dataDir));
    const outcomes = await Promise.all(starts.map((each) => Promise.race([each.exited, urlOf(each)])));
    const winners = starts.filter((_, i) => typeof outcomes[i] === "string");
    expect(winners).toHaveLength(1);
    for (const winner of winners) await stopped(winner, await urlOf(winner), () => winner.kill("SIGINT"));
  });

  test("finishes a request although Ctrl-C reaches every process of the terminal", async () => {
    const started = service(directory(), { detached: true });
    const url = await urlOf(started);
    await stopped(started, url, () => process.kill(-started.pid, "SIGINT"));
  });

  test("hears of it when Postgres dies", async () => {
    const dataDir = directory();
    const postgres = await start(dataDir);
    process.kill(postmaster(join(dataDir, "postgres")), "SIGKILL");
    expect((await postgres.exited).message).toBe("the embedded Postgres ended unexpectedly (SIGKILL)");
  });
});
