/** Whose fault it is that an event is not taken: its own, then the others go on; or the sink's, then nothing is lost. */
import { describe, expect, test, vi } from "vitest";
import { addEvents, aggregates, type Behaviour } from "./receiver.ts";
import { numbers, openHttp, runUntil } from "./relays.ts";

type Opened = Awaited<ReturnType<typeof openHttp>>;

const answer =
  (status: number): Behaviour =>
  (_event, response) =>
    response.writeHead(status).end();
const hang: Behaviour = () => {};

/** Everybody else is taken. */
const only =
  (behave: Behaviour, ...sick: readonly unknown[]): Behaviour =>
  (event, response) =>
    sick.includes(event.subject) ? behave(event, response) : response.writeHead(204).end();

/** Tries again all that was set aside, once. */
async function retry({ relay, soon }: Opened): Promise<void> {
  await relay.run();
  await soon();
  await relay.retry();
}

const attempts = async ({ undelivered }: Opened) => (await undelivered()).map(({ attempts }) => attempts);

describe("one event that is never taken", () => {
  test.each([
    ["is refused", answer(400)],
    ["fails", answer(500)],
    ["is never answered", hang],
  ])("%s: it is given up while others are taken, and holds up nobody from then on", async (_name, behave) => {
    const opened = await openHttp({ maxAttempts: 3 });
    const { receiver, client, relay, told, undelivered, soon, drain } = opened;
    const [sick = "", healthy = ""] = aggregates(2);
    receiver.behave = (event, response) =>
      event.data?.n === 0 ? behave(event, response) : response.writeHead(204).end();
    const [id] = await addEvents(client, [sick, healthy, sick]);
    let n = 100;
    await runUntil(relay, async () => {
      await soon();
      await addEvents(client, [healthy], n++);
      expect(await undelivered()).toMatchObject([{ id, attempts: 3, dead: true }]);
    });
    expect(numbers(receiver.taken.filter(({ subject }) => subject === sick))).toEqual([2]);
    // It has never passed for a sink that takes nothing.
    expect(told).toEqual([`dead ${id}`]);
    await addEvents(client, [sick], 50);
    await drain();
    expect(numbers(receiver.taken)).toContain(50);
  });

  // As many of them as are tried side by side.
  test.each([1, 32])(
    "is tried again, as are %i, beside the others, which do not wait for its answer",
    async (count) => {
      const { receiver, client, relay, soon, drain } = await openHttp({ timeoutMs: 20_000 });
      const [sick, healthy] = [aggregates(count), aggregates(600)];
      receiver.behave = only(answer(500), ...sick);
      for (const one of sick) {
        await addEvents(client, [one, healthy[0] as string]);
        await drain();
      }
      const before = receiver.tried.length;
      receiver.behave = only(hang, ...sick);
      await soon();
      let answered = false;
      const trying = relay.retry().then(() => {
        answered = true;
      });
      await vi.waitFor(() => expect(receiver.tried).toHaveLength(before + count), { timeout: 10_000, interval: 5 });
      await addEvents(client, healthy, 100);
      await runUntil({ run: () => relay.run(), retry: async () => false }, () =>
        expect(receiver.taken).toHaveLength(600 + count),
      );
      expect(answered).toBe(false);
      relay.abort();
      await trying;
    },
  );

  test("and stands in front of more of its aggregate than are read at a time holds up nobody behind them", async () => {
    const { receiver, client, relay, undelivered } = await openHttp();
    const [sick = "", ...healthy] = aggregates(21);
    receiver.behave = only(hang, sick);
    await addEvents(
      client,
      Array.from({ length: 1_100 }, () => sick),
    );
    await addEvents(client, healthy, 2_000);
    await runUntil(relay, () => expect(receiver.taken).toHaveLength(20));
    expect(await undelivered()).toHaveLength(1_100);
    receiver.behave = undefined;
    await runUntil(relay, async () => expect(await undelivered()).toEqual([]), 25_000);
    const own = numbers(receiver.taken.filter(({ subject }) => subject === sick));
    expect(own).toEqual(Array.from({ length: 1_100 }, (_, n) => n));
  }, 60_000);

  test("and stands in front of very many of its aggregate: they are not looked at until it is their turn", async () => {
    const opened = await openHttp();
    const { receiver, client, relay, undelivered } = opened;
    const [sick = "", healthy = ""] = aggregates(2);
    receiver.behave = only(answer(500), sick);
    const claims = Array.from({ length: 10_000 }, () => sick);
    await addEvents(client, [...claims, healthy]);
    await runUntil(relay, () => expect(receiver.taken).toHaveLength(1));
    await client.query("update event_undelivered set retry_time = now() + interval '1 hour' where attempts > 0");
    await client.query("analyze event_undelivered");
    const times: number[] = [];
    for (let round = 0; round < 5; round += 1) {
      const began = performance.now();
      expect(await relay.retry()).toBe(false);
      times.push(performance.now() - began);
    }
    // To look at each of them takes several times as long, and is done every second.
    expect(Math.min(...times)).toBeLessThan(40);
    expect((await undelivered()).length).toBe(10_000);
    receiver.behave = undefined;
    await client.query("update event_undelivered set retry_time = now() where attempts > 0");
    while (await relay.retry());
    const own = numbers(receiver.taken.filter(({ subject }) => subject === sick));
    expect(own.length).toBeGreaterThan(500);
    expect(own).toEqual(own.map((_, n) => n));
  }, 60_000);

  test("and is taken while one behind it is set aside: that one comes, too", async () => {
    const { receiver, client, relay, undelivered, soon, drain } = await openHttp({ timeoutMs: 20_000 });
    const [sick = "", healthy = "", slow = ""] = aggregates(3);
    receiver.behave = only(answer(500), sick);
    await addEvents(client, [sick, healthy]);
    await drain();
    // The relay has seen that the second one has to wait, and waits for an answer itself.
    const [asked, answered] = [Promise.withResolvers<void>(), Promise.withResolvers<void>()];
    receiver.behave = async ({ subject }, response) => {
      if (subject === slow) {
        asked.resolve();
        await answered.promise;
      }
      response.writeHead(204).end();
    };
    await addEvents(client, [sick, slow], 2);
    const running = runUntil({ run: () => relay.run(), retry: async () => false }, () =>
      expect(numbers(receiver.taken)).toContain(3),
    );
    await asked.promise;
    await soon();
    await relay.retry();
    expect(await undelivered()).toEqual([]);
    answered.resolve();
    await running;
    await relay.retry();
    expect(numbers(receiver.taken)).toEqual([1, 0, 3, 2]);
    expect(await undelivered()).toEqual([]);
  });

  test("is refused while nothing else happens: it is given up all the same, and those behind it come", async () => {
    const opened = await openHttp({ maxAttempts: 3 });
    const { receiver, client, relay, undelivered } = opened;
    const [sick = ""] = aggregates(1);
    receiver.behave = (event, response) => response.writeHead(event.data?.n === 0 ? 422 : 204).end();
    const [id] = await addEvents(client, [sick, sick]);
    await runUntil(relay, async () => {
      await retry(opened);
      expect(await undelivered()).toMatchObject([{ id, attempts: 3, dead: true }]);
    });
    await runUntil(relay, () => expect(numbers(receiver.taken)).toEqual([1]));
  });

  test.each([
    ["fails", answer(500)],
    ["is never answered", hang],
  ])(
    "%s while nothing else happens: that may be the sink's fault, and counts once others are taken",
    async (_name, behave) => {
      const opened = await openHttp({ maxAttempts: 3 });
      const { receiver, client, relay, undelivered, drain } = opened;
      const [sick = "", healthy = ""] = aggregates(2);
      receiver.behave = only(behave, sick);
      await addEvents(client, [sick]);
      await drain();
      const before = receiver.tried.length;
      for (let round = 0; round < 4; round += 1) await retry(opened);
      expect(receiver.tried).toHaveLength(before + 4);
      expect(await undelivered()).toMatchObject([{ attempts: 1, dead: false }]);
      // It is not tried again and again without a pause.
      await relay.retry();
      expect(receiver.tried).toHaveLength(before + 4);
      let n = 100;
      await runUntil(relay, async () => {
        await addEvents(client, [healthy], n++);
        await retry(opened);
        expect(await undelivered()).toMatchObject([{ attempts: 3, dead: true }]);
      });
    },
  );
});

test("two aggregates that are never taken hide nobody, however many events they have", async () => {
  const { receiver, client, relay } = await openHttp();
  const [one = "", two = "", ...healthy] = aggregates(7);
  receiver.behave = only(hang, one, two);
  const crowd = Array.from({ length: 1_300 }, () => [one, two]).flat();
  for (const round of [0, 1]) await addEvents(client, crowd, round * crowd.length);
  await addEvents(client, healthy, 10_000);
  await runUntil(
    relay,
    () => expect(numbers(receiver.taken)).toEqual(expect.arrayContaining([10_000, 10_004])),
    30_000,
  );
}, 60_000);

describe("many events of one kind that are not taken", () => {
  test.each([400, 500])("(%i): those of another kind behind them are, and none of them is lost", async (status) => {
    const { receiver, client, relay, undelivered, soon } = await openHttp();
    const kind = aggregates(600);
    receiver.behave = (event, response) => response.writeHead(event.type === "stock.adjusted" ? status : 204).end();
    await addEvents(client, kind);
    const [id] = await addEvents(client, aggregates(1), 1_000);
    await client.query("update event set type = 'balance.charged' where id = $1", [id]);
    await runUntil(relay, () => expect(numbers(receiver.taken)).toContain(1_000));
    receiver.behave = undefined;
    await runUntil(relay, async () => {
      await soon();
      expect(await undelivered()).toEqual([]);
      expect(receiver.taken.length).toBeGreaterThanOrEqual(601);
    });
    // Each once, whatever was tried to see whether the sink is back.
    expect(new Set(numbers(receiver.taken)).size).toBe(601);
    expect(receiver.taken).toHaveLength(601);
  });
});

describe("a sink that answers everybody with", () => {
  test.each([401, 403, 404, 405, 407, 410, 429, 503])(
    "%i: all wait where they are, and come in order once it is back",
    async (status) => {
      const { receiver, client, relay, told, undelivered } = await openHttp({ maxAttempts: 2 });
      // Fewer than are tried side by side.
      const [aggregate = ""] = aggregates(1);
      receiver.behave = answer(status);
      for (let n = 0; n < 3; n += 1) await addEvents(client, [aggregate, ...aggregates(9)], n * 1_000);
      await runUntil(relay, () => expect(told).toEqual(["down", "down", "down"]));
      expect(await undelivered()).toEqual([]);
      receiver.behave = undefined;
      await runUntil(relay, () => expect(receiver.taken).toHaveLength(30));
      const own = numbers(receiver.taken.filter(({ subject }) => subject === aggregate));
      expect(own).toEqual([0, 1_000, 2_000]);
      expect([told.at(-1), await undelivered()]).toEqual(["up", []]);
    },
  );

  test("400: none is given up, however often that is, and all come in order once it is back", async () => {
    const opened = await openHttp({ maxAttempts: 2 });
    const { receiver, client, relay, told, undelivered, soon, drain } = opened;
    const [aggregate = ""] = aggregates(1);
    receiver.behave = answer(400);
    for (let n = 0; n < 3; n += 1) await addEvents(client, [aggregate, ...aggregates(9)], n * 1_000);
    await drain();
    for (let round = 0; round < 5; round += 1) await retry(opened);
    expect(new Set(await attempts(opened))).toEqual(new Set([0, 1]));
    expect(told).not.toContainEqual(expect.stringMatching("dead"));
    receiver.behave = undefined;
    await runUntil(relay, async () => {
      await soon();
      expect(await undelivered()).toEqual([]);
      expect(receiver.taken).toHaveLength(30);
    });
    const own = numbers(receiver.taken.filter(({ subject }) => subject === aggregate));
    expect(own).toEqual([0, 1_000, 2_000]);
  });

  test("500, and then takes what was set aside: the others come at once, without waiting out the pause", async () => {
    const { receiver, client, relay, soon, drain, told } = await openHttp();
    const [sick = "", ...healthy] = aggregates(4);
    receiver.behave = only(answer(500), sick);
    await addEvents(client, [sick, healthy[0] as string]);
    await drain();
    receiver.behave = answer(500);
    await addEvents(client, healthy, 100);
    await runUntil(relay, () => expect(told).toEqual(["down", "down", "down"]));
    receiver.behave = undefined;
    await soon();
    await relay.retry();
    await relay.run();
    expect(numbers(receiver.taken)).toEqual(expect.arrayContaining([0, 100, 101, 102]));
  });
});
