/** Processes of the service that relay events, and die of it. */
import type { ServerResponse } from "node:http";
import { beforeAll, expect, onTestFinished, test, vi } from "vitest";
import { openDatabase } from "../exact/audit.ts";
import { GrpcClient } from "../exact/clients.ts";
import { type Clients, clientsOf, fresh, many, newUser, newVariant, serverOn, tokenOf } from "../exact/shop.ts";
import { createDatabase } from "../support/database.ts";
import type { Server } from "../support/processes.ts";
import { startReceiver } from "./receiver.ts";

const soon = { timeout: 10_000, interval: 20 };
const NOT_DELIVERED = `
  select e.id from event e, event_reader r where r.name = 'sink' and (e.xid, e.id) > (r.xid, r.event_id)`;

let token: string;
beforeAll(async () => {
  token = await tokenOf();
});

function shopOn(server: Server): Clients {
  const client = new GrpcClient(server, token);
  onTestFinished(() => client.close());
  return clientsOf(client.transport);
}

/** A database, somebody who receives its events, and processes that relay them, one after the other. */
async function openShop(sinkTimeout = "1s") {
  const url = await createDatabase();
  const receiver = await startReceiver();
  const database = openDatabase(url);
  const env = { EVENT_SINK_URL: receiver.url.href, EVENT_SINK_TIMEOUT: sinkTimeout };
  const start = async () => {
    const server = await serverOn(url, env);
    onTestFinished(async () => {
      server.kill("SIGKILL");
      await server.exited;
    });
    return { server, shop: shopOn(server) };
  };
  /** Returns when somebody relays, and who. */
  const relaying = () =>
    vi.waitFor(
      async () => {
        const { rows } = await database.query<{ owner: string | null }>(
          "select owner from event_reader where name = 'sink'",
        );
        expect(rows[0]?.owner).not.toBeNull();
        return rows[0]?.owner as string;
      },
      { timeout: 10_000, interval: 20 },
    );
  /** Waits until everything that has happened was received. */
  const receivedAll = (events: number, timeout = 10_000) =>
    vi.waitFor(
      async () => {
        const { rows } = await database.query<{ id: string }>("select id from event");
        expect(rows).toHaveLength(events);
        expect(new Set(receiver.taken.map(({ id }) => id))).toEqual(new Set(rows.map(({ id }) => id)));
      },
      { timeout, interval: 20 },
    );
  return { url, receiver, database, start, relaying, receivedAll };
}

type Taken = Awaited<ReturnType<typeof startReceiver>>["taken"];

/** The balances that the events of a wallet tell of, each event once, in the order of their first arrival. */
function balancesIn(taken: Taken, userId: string): number[] {
  const seen = new Set<string>();
  const own = taken.filter(({ subject, id }) => subject === userId && !seen.has(id) && seen.add(id));
  return own.map(({ data }) => Number((data as unknown as { balance: string }).balance));
}

const charge = ({ balances }: Clients, userId: string) =>
  balances.chargeBalance({ requestId: fresh(), userId, amount: 1n });

test("kill -9 of the process that relays: another one goes on within 5 s, and no event is lost or out of order", async () => {
  const { receiver, database, start, relaying, receivedAll } = await openShop();
  const dying = await start();
  const owner = await relaying();
  const other = await start();
  const users = await many(10, () => newUser(other.shop));
  // Slow enough that deliveries are under way whenever it dies.
  receiver.behave = (_event, response) => void setTimeout(() => response.writeHead(204).end(), 20);
  const charges = (rounds: number) =>
    many(users.length, async (index) => {
      for (let round = 0; round < rounds; round += 1) await charge(other.shop, users[index] as string);
    });
  await charges(1);
  await vi.waitFor(async () => expect((await database.query(NOT_DELIVERED)).rows).toEqual([]), soon);
  const load = charges(39);
  await vi.waitFor(() => expect(receiver.taken.length).toBeGreaterThan(20), { timeout: 10_000, interval: 5 });
  dying.server.kill("SIGKILL");
  await dying.server.exited;
  const died = performance.now();
  const before = receiver.taken.length;
  const sent = receiver.tried.length;
  // What it has noted as delivered: that does not come again.
  const { rows: noted } = await database.query<{ id: string }>(
    "select e.id from event e, event_reader r where r.name = 'sink' and (e.xid, e.id) <= (r.xid, r.event_id)",
  );
  expect(noted.length).toBeGreaterThanOrEqual(users.length);
  await vi.waitFor(() => expect(receiver.taken.length).toBeGreaterThan(before + 10), { timeout: 10_000, interval: 20 });
  expect(performance.now() - died).toBeLessThan(5_000);
  await load;
  await receivedAll(400);
  expect(await relaying()).not.toBe(owner);
  const again = new Set(receiver.tried.slice(sent).map(({ id }) => id));
  expect(noted.filter(({ id }) => again.has(id))).toEqual([]);
  for (const userId of users) {
    expect(balancesIn(receiver.taken, userId)).toEqual(Array.from({ length: 40 }, (_, index) => index + 1));
  }
});

test("a process is frozen for longer than its lease: another one goes on within 5 s, and all stays in order", async () => {
  const { receiver, start, relaying, receivedAll } = await openShop();
  const frozen = await start();
  const owner = await relaying();
  const other = await start();
  const users = await many(10, () => newUser(other.shop));
  receiver.behave = (_event, response) => void setTimeout(() => response.writeHead(204).end(), 20);
  let stopped = false;
  const counts = users.map(() => 0);
  const load = many(users.length, async (index) => {
    while (!stopped) {
      await charge(other.shop, users[index] as string);
      counts[index] = (counts[index] as number) + 1;
      // As fast as the events are received.
      await vi.waitFor(
        () => expect(counts[index]).toBeLessThan(balancesIn(receiver.taken, users[index] as string).length + 10),
        {
          timeout: 10_000,
          interval: 5,
        },
      );
    }
  });
  const more = async (than: number) =>
    vi.waitFor(() => expect(receiver.taken.length).toBeGreaterThan(than), { timeout: 10_000, interval: 10 });
  await more(50);
  frozen.server.kill("SIGSTOP");
  const began = performance.now();
  const before = receiver.taken.length;
  // What had been sent by then, and then the other one's.
  await more(before + 40);
  expect(performance.now() - began).toBeLessThan(5_000);
  expect(await relaying()).not.toBe(owner);
  const during = receiver.taken.length;
  frozen.server.kill("SIGCONT");
  await more(during + 100);
  stopped = true;
  await load;
  await receivedAll(counts.reduce((sum, count) => sum + count, 0));
  expect(await relaying()).not.toBe(owner);
  users.forEach((userId, index) => {
    expect(balancesIn(receiver.taken, userId)).toEqual(
      Array.from({ length: counts[index] as number }, (_, n) => n + 1),
    );
  });
});

test("a process that stops hands over at once", async () => {
  const { database, start, relaying, receivedAll } = await openShop();
  const leaving = await start();
  const owner = await relaying();
  const other = await start();
  await leaving.server.stop();
  const left = performance.now();
  // Not when its lease has ended, which is seconds later.
  const { rows } = await database.query("select owner from event_reader where name = 'sink'");
  expect(rows[0].owner).not.toBe(owner);
  await relaying();
  // The other one asks once a second.
  expect(performance.now() - left).toBeLessThan(1_500);
  await charge(other.shop, await newUser(other.shop));
  await receivedAll(1);
});

test("connections to the database die in the middle of it: no event is lost", async () => {
  const { receiver, database, start, relaying, receivedAll } = await openShop();
  const { shop } = await start();
  await relaying();
  const users = await many(10, () => newUser(shop));
  receiver.behave = (_event, response) => void setTimeout(() => response.writeHead(204).end(), 10);
  let charged = 0;
  const kill = `select pg_terminate_backend(pid) from pg_stat_activity
                 where datname = current_database() and pid <> pg_backend_pid() and application_name <> 'auditor'`;
  for (let round = 0; round < 5; round += 1) {
    const ends = await Promise.allSettled(users.flatMap((userId) => [charge(shop, userId), charge(shop, userId)]));
    charged += ends.filter(({ status }) => status === "fulfilled").length;
    await database.query(kill).catch(() => {});
  }
  const stored = await database.query("select from event");
  expect(stored.rows.length).toBeGreaterThanOrEqual(charged);
  await receivedAll(stored.rows.length, 20_000);
});

test("a sink that never answers slows no purchase and not the ranking, and gets everything once it does", async () => {
  const { receiver, database, start, relaying, receivedAll } = await openShop("60s");
  const { shop } = await start();
  await relaying();
  const users = await many(20, () => newUser(shop, 1_000n));
  const variantId = await newVariant(shop, {}, 1n, 10_000);
  const buy = (userId: string) =>
    shop.orders.checkout({ requestId: fresh(), userId, lines: [{ variantId, quantity: 1 }] });
  /** How long some rounds of purchases take, in milliseconds. */
  const trade = async () => {
    const began = performance.now();
    for (let round = 0; round < 20; round += 1) await Promise.all(users.map(buy));
    return performance.now() - began;
  };
  const unitsListed = async () => Number((await shop.ranking.listTopProducts({})).products[0]?.unitsSold ?? 0);
  const ranked = (units: number) => vi.waitFor(async () => expect(await unitsListed()).toBe(units), soon);
  await trade();
  const before = await trade();
  await ranked(800);
  await vi.waitFor(async () => expect((await database.query(NOT_DELIVERED)).rows).toEqual([]), soon);
  const kept: ServerResponse[] = [];
  receiver.behave = (_event, response) => void kept.push(response);
  const taken = receiver.taken.length;
  const during = await trade();
  await vi.waitFor(() => expect(kept.length).toBeGreaterThan(0), soon);
  await ranked(1_200);
  expect(receiver.taken).toHaveLength(taken);
  // It varies, but not by the time in which an answer would have had to come.
  expect(during).toBeLessThan(2 * before + 2_000);
  receiver.behave = undefined;
  for (const response of kept) response.writeHead(204).end();
  await receivedAll((await database.query("select from event")).rows.length, 20_000);
});
