import { Client } from "pg";
import { destroy } from "./silence.ts";

/** Pauses before a lost connection is made again, in milliseconds: doubled from the first to the longest. */
const FIRST_PAUSE = 100;
const LONGEST_PAUSE = 10_000;
/** How often it is asked whether the database is still there: a connection may die without a word. */
const PROBE_INTERVAL = 30_000;

const SETTINGS = {
  application_name: "doorbuster listen",
  keepAlive: true,
  connectionTimeoutMillis: 5_000,
  query_timeout: 10_000,
};

/** One connection that hears what is notified, for the whole process. */
export interface Listener {
  stop(): Promise<void>;
}

/**
 * Calls `heard` for each NOTIFY on the channel, and whenever the connection is there (again): what was notified meanwhile is
 * lost. A notification is a hint; who needs to know looks now and then besides, also where no LISTEN is to be had.
 */
export function listen(url: string, channel: string, heard: () => void, onError: (error: unknown) => void): Listener {
  let client: Client | undefined;
  let timer: NodeJS.Timeout | undefined;
  let failures = 0;
  /** Once for a time without a connection is enough. */
  let told = false;
  let stopped = false;

  async function connect(): Promise<void> {
    const next = new Client({ connectionString: url, ...SETTINGS });
    client = next;
    next.on("notification", () => heard());
    next.on("error", () => {});
    next.on("end", () => again(next));
    try {
      await next.connect();
      await next.query(`listen ${channel}`);
    } catch (error) {
      if (!told && !stopped) onError(error);
      told = true;
      again(next);
      return;
    }
    failures = 0;
    told = false;
    heard();
    timer = setTimeout(() => void probe(next), PROBE_INTERVAL);
  }

  async function probe(current: Client): Promise<void> {
    try {
      await current.query("select 1");
    } catch {
      again(current);
      return;
    }
    if (current === client && !stopped) timer = setTimeout(() => void probe(current), PROBE_INTERVAL);
  }

  function again(lost: Client): void {
    if (lost !== client) return;
    client = undefined;
    clearTimeout(timer);
    void lost.end().catch(() => {});
    if (stopped) return;
    timer = setTimeout(() => void connect(), Math.min(FIRST_PAUSE * 2 ** failures, LONGEST_PAUSE));
    failures += 1;
  }

  void connect();
  return {
    async stop() {
      stopped = true;
      clearTimeout(timer);
      if (!client) return;
      const ended = client.end().catch(() => {});
      // The goodbye is sent. A database that is silent would never answer it.
      destroy(client);
      await ended;
    },
  };
}
