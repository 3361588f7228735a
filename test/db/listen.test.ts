/** The connection that hears what is notified. */
import { expect, onTestFinished, test, vi } from "vitest";
import { listen } from "../../src/db/listen.ts";
import { createDatabase } from "../support/database.ts";
import { createProxy } from "../support/proxy.ts";
import { connect } from "./harness.ts";

const CHANNEL = "doorbuster_test";
const soon = { timeout: 10_000, interval: 10 };

async function openListener() {
  const url = await createDatabase();
  const proxy = await createProxy(url);
  const client = await connect(url);
  const state = { heard: 0, failures: 0 };
  const count = (name: keyof typeof state) => () => {
    state[name] += 1;
  };
  const listener = listen(proxy.url, CHANNEL, count("heard"), count("failures"));
  onTestFinished(() => listener.stop());
  const connections = async () => {
    const { rows } = await client.query<{ pid: number }>(
      "select pid from pg_stat_activity where datname = current_database() and application_name = 'doorbuster listen'",
    );
    return rows.map(({ pid }) => pid);
  };
  const heard = (times: number) => vi.waitFor(() => expect(state.heard).toBe(times), soon);
  return { proxy, client, state, listener, connections, heard };
}

test("hears each notification, on one connection, and once when it begins", async () => {
  const { client, listener, connections, heard } = await openListener();
  await heard(1);
  await client.query(`notify ${CHANNEL}`);
  await heard(2);
  await client.query("notify another_channel");
  await client.query(`notify ${CHANNEL}`);
  await heard(3);
  expect(await connections()).toHaveLength(1);
  await listener.stop();
  await vi.waitFor(async () => expect(await connections()).toEqual([]), soon);
});

test("is made again when it is lost, and then asks for a look: what was notified meanwhile is lost", async () => {
  const { client, state, connections, heard } = await openListener();
  await heard(1);
  const [pid] = await connections();
  await client.query("select pg_terminate_backend($1)", [pid]);
  await heard(2);
  await client.query(`notify ${CHANNEL}`);
  await heard(3);
  expect(await connections()).toHaveLength(1);
  expect(state.failures).toBe(0);
});

test("is tried again while nobody answers, and says so once", async () => {
  const { proxy, state, heard } = await openListener();
  await heard(1);
  proxy.refuse(true);
  proxy.cut();
  await vi.waitFor(() => expect(state.failures).toBe(1), soon);
  await new Promise((resolve) => setTimeout(resolve, 1_000));
  expect(state).toEqual({ heard: 1, failures: 1 });
  proxy.refuse(false);
  await heard(2);
});

test("is let go of at once, also by a database that does not answer", async () => {
  const { listener, connections, heard } = await openListener();
  await heard(1);
  const [pid] = (await connections()) as [number];
  process.kill(pid, "SIGSTOP");
  const stopped = vi.fn();
  const stopping = listener.stop().then(stopped);
  try {
    await vi.waitFor(() => expect(stopped).toHaveBeenCalled(), { timeout: 1_000, interval: 10 });
  } finally {
    process.kill(pid, "SIGCONT");
    await stopping;
  }
});
