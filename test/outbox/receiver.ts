/** Receivers of events that behave well or badly, and events to be received. */
import { randomUUID } from "node:crypto";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { type CloudEvent, HTTP } from "cloudevents";
import type { Client } from "pg";
import { onTestFinished } from "vitest";
import { Event } from "../../src/outbox/event.entity.ts";

/** Answers one delivery; without one it is 204. */
export type Behaviour = (event: CloudEvent<Facts>, response: ServerResponse) => void;
export type Facts = { n: number };

async function bodyOf(request: IncomingMessage): Promise<string> {
  const chunks: Buffer[] = [];
  for await (const chunk of request) chunks.push(chunk as Buffer);
  return Buffer.concat(chunks).toString();
}

/** An HTTP server that keeps what it has taken, as CloudEvents' own library reads it. Closed after the test. */
export async function startReceiver() {
  const state = {
    /** What was delivered, in the order of its arrival. */
    taken: [] as CloudEvent<Facts>[],
    /** Everything that has arrived, whatever the answer was. */
    tried: [] as CloudEvent<Facts>[],
    headers: [] as IncomingMessage["headers"][],
    behave: undefined as Behaviour | undefined,
  };
  const server = createServer(async (request, response) => {
    const event = HTTP.toEvent({ headers: request.headers, body: await bodyOf(request) }) as CloudEvent<Facts>;
    state.headers.push(request.headers);
    state.tried.push(event);
    response.on("finish", () => {
      if (response.statusCode < 300) state.taken.push(event);
    });
    if (state.behave) state.behave(event, response);
    else response.writeHead(204).end();
  });
  const listen = (port: number) => new Promise<void>((resolve) => server.listen(port, "127.0.0.1", resolve));
  await listen(0);
  const { port } = server.address() as AddressInfo;
  const down = () =>
    new Promise<void>((resolve) => {
      server.close(() => resolve());
      server.closeAllConnections();
    });
  onTestFinished(down);
  return Object.assign(state, {
    url: new URL(`http://127.0.0.1:${port}/events?shop=1`),
    /** Nobody is reached any more. */
    down,
    up: () => listen(port),
  });
}

/** Writes an event of each of these aggregates, in this order and one transaction, numbered on from `first`. */
export async function addEvents(client: Client, aggregates: readonly string[], first = 0): Promise<string[]> {
  const events = aggregates.map((aggregate, index) =>
    Event.of("stock.adjusted", aggregate, { n: first + index }, new Date()),
  );
  await client.query(
    `insert into event (id, aggregatetype, aggregateid, type, payload, create_time)
     select * from jsonb_to_recordset($1) as e (id uuid, aggregatetype text, aggregateid text, type text, payload jsonb, "createTime" timestamptz)`,
    [JSON.stringify(events)],
  );
  return events.map(({ id }) => id);
}

/** As many ids of aggregates. */
export const aggregates = (count: number) => Array.from({ length: count }, () => randomUUID() as string);
