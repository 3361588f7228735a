/** Databases for tests, in the cluster of this run. */
import { randomBytes } from "node:crypto";
import { Client } from "pg";
import { afterAll, inject } from "vitest";

/** Any database other than the template, which nobody may be connected to while it is cloned. */
const MAINTENANCE = "template1";
/** Only one clone of a template can be made at a time, and several test files start together. */
const CLONE_LOCK = 7_304_013;

const created: string[] = [];

function urlOf(database: string): string {
  const url = new URL(inject("templateUrl"));
  url.pathname = database;
  return url.href;
}

async function administer(...statements: string[]): Promise<void> {
  const client = new Client({ connectionString: urlOf(MAINTENANCE) });
  await client.connect();
  try {
    await client.query("select pg_advisory_lock($1)", [CLONE_LOCK]);
    for (const statement of statements) await client.query(statement);
  } finally {
    await client.end();
  }
}

/** Makes a migrated, empty database that is dropped after the test file. Returns its URL. */
export async function createDatabase(): Promise<string> {
  const name = `test_${randomBytes(6).toString("hex")}`;
  const template = new URL(inject("templateUrl")).pathname.slice(1);
  await administer(`create database ${name} template ${template}`);
  created.push(name);
  return urlOf(name);
}

afterAll(async () => {
  if (created.length > 0) await administer(...created.map((name) => `drop database ${name} with (force)`));
});
