/** What stands between a process and Postgres, or between a caller and the service, and sometimes in the way. */
import { once } from "node:events";
import { connect as connectTcp, createServer, type Socket } from "node:net";
import { onTestFinished } from "vitest";

/** A way to a server whose answers can be kept: what is sent arrives, and nobody hears what became of it. */
export async function createProxy(url: string) {
  const { hostname, port } = new URL(url);
  const sockets = new Set<Socket>();
  let keeping = false;
  let refusing = false;
  let spoiled: { text: string; other: string } | undefined;
  const kept = new Map<Socket, Buffer[]>();
  /** What to do when nothing is kept any more. */
  const later: (() => void)[] = [];
  // Half open: each side ends when it has heard that the other one has.
  const server = createServer({ allowHalfOpen: true }, (client) => {
    if (refusing) {
      client.destroy();
      return;
    }
    const upstream = connectTcp({ port: Number(port), host: hostname, allowHalfOpen: true });
    for (const socket of [client, upstream]) {
      sockets.add(socket);
      socket.on("error", () => {});
    }
    client.on("data", (data: Buffer) => {
      const at = spoiled ? data.indexOf(spoiled.text) : -1;
      if (spoiled && at >= 0) {
        data.write(spoiled.other, at);
        spoiled = undefined;
      }
      upstream.write(data);
    });
    upstream.on("data", (data) => {
      if (keeping) kept.set(client, [...(kept.get(client) ?? []), data as Buffer]);
      else client.write(data);
    });
    const end = () => void client.end();
    upstream.on("end", () => (keeping ? later.push(end) : end()));
    upstream.on("close", () => client.destroy());
    client.on("end", () => upstream.end());
    client.on("close", () => upstream.destroy());
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const cut = () => {
    for (const socket of sockets) socket.destroy();
  };
  const close = () => {
    cut();
    server.close();
  };
  onTestFinished(close);
  const proxied = new URL(url);
  proxied.hostname = "127.0.0.1";
  proxied.port = String((server.address() as { port: number }).port);
  return {
    url: proxied.href,
    keep() {
      keeping = true;
    },
    /** The next statement that begins with the text arrives as another one, as long as the first. */
    spoil(text: string, other: string) {
      spoiled = { text, other };
    },
    /** What was kept arrives, all of a connection at once. */
    pass() {
      keeping = false;
      for (const [client, data] of kept) client.write(Buffer.concat(data));
      kept.clear();
      for (const act of later.splice(0)) act();
    },
    /** Whether new connections are ended at once. */
    refuse(all: boolean) {
      refusing = all;
    },
    /** Ends all connections; new ones work again. */
    cut() {
      cut();
      keeping = false;
      kept.clear();
    },
    close,
  };
}
