import type { EntityManager } from "@mikro-orm/postgresql";
import type { Database } from "../db/database.ts";
import { projection, RANKED, SALES } from "./projection.ts";

/** How many events are counted in one transaction. */
const BATCH = 5_000;
/** Its row in `event_reader`, and where it counts, while it is at it. */
const READER = "sales.rebuild";
const BUCKETS = "ranking_rebuild";

const PROJECT = projection(READER, BUCKETS);

/**
 * Counts the ranking anew from all events that are kept, beside the one that is in use, and then takes its place; sales go
 * on meanwhile. `onProgress` hears how many events are counted, of how many.
 */
export async function rebuildRanking(db: Database, onProgress: (done: number, total: number) => void): Promise<void> {
  const total = await db.maintain(async (em) => {
    await em.execute(`drop table if exists ${BUCKETS}`);
    await em.execute(`create table ${BUCKETS} (like ranking_bucket including all)`);
    await em.execute(
      `insert into event_reader (name, xid, event_id) values ('${READER}', '0', '00000000-0000-0000-0000-000000000000')
         on conflict (name) do update set xid = excluded.xid, event_id = excluded.event_id`,
    );
    const [row] = await em.execute<{ total: number }[]>(`select count(*)::int as total from event e where ${RANKED}`);
    return row?.total ?? 0;
  });
  const count = async (em: EntityManager) => (await em.execute<{ events: number }[]>(PROJECT, [BATCH]))[0]?.events ?? 0;
  let done = 0;
  for (let events = BATCH; events === BATCH; done += events) {
    onProgress(Math.min(done, total), total);
    events = await db.maintain(count);
  }
  await db.maintain(async (em) => {
    // From here on nobody counts sales; the few that came meanwhile are counted here.
    await em.execute(`select from event_reader where name = '${SALES}' for update`);
    while ((await count(em)) > 0);
    await em.execute("delete from ranking_bucket");
    await em.execute(`insert into ranking_bucket select * from ${BUCKETS}`);
    await em.execute(
      `update event_reader set xid = r.xid, event_id = r.event_id
         from (select xid, event_id from event_reader where name = '${READER}') r where name = '${SALES}'`,
    );
    await em.execute(`delete from event_reader where name = '${READER}'`);
    await em.execute(`drop table ${BUCKETS}`);
  });
  onProgress(total, total);
}
