/**
 * Events restored from a dump. They are read in the order of the transactions that wrote them, and another cluster has
 * another count of those: where it has not come so far, what is written from then on would stand in front of what was
 * restored, and of the positions of its readers, and nobody would ever read it.
 */
import type { EntityManager } from "@mikro-orm/postgresql";

/** Tables with transaction ids in a column `xid`. */
const TABLES = ["event", "event_reader", "event_undelivered"];

async function isRestored(em: EntityManager): Promise<boolean> {
  const [row] = await em.execute<{ restored: boolean | null }[]>(
    `select greatest((select xid from event order by xid desc, id desc limit 1),
                     (select xid from event_reader order by xid desc limit 1))
            >= pg_snapshot_xmax(pg_current_snapshot()) as restored`,
  );
  return row?.restored === true;
}

/** @throws Error with one line for the operator when events are of a cluster whose transaction ids are ahead of this one's */
export async function assertNotRestored(em: EntityManager): Promise<void> {
  if (await isRestored(em)) {
    throw new Error("the events were restored from another cluster: run `npm run events -- rebase` once");
  }
}

/**
 * Gives events, and the positions of their readers, the first transaction ids that this cluster has had, in their order;
 * where it has not had enough, it uses some up. Nobody may write or read events meanwhile, and positions that callers of
 * streams have kept are void. Returns how many events there are; undefined when there was nothing to do.
 */
export async function rebaseEvents(em: EntityManager): Promise<number | undefined> {
  if (!(await isRestored(em))) return undefined;
  for (;;) {
    const { missing, events } = await em.fork().transactional(renumber);
    if (missing === 0) return events;
    await em.execute(useUp(missing));
  }
}

/** `missing`: how many transactions the cluster has to have before it can be done. */
async function renumber(em: EntityManager): Promise<{ missing: number; events: number }> {
  await em.execute(`lock table ${TABLES.join(", ")} in access exclusive mode`);
  await em.execute(
    `create temporary table renumbered on commit drop as
     select xid, (row_number() over (order by xid))::text::xid8 as own
       from (${TABLES.map((table) => `select xid from ${table} where xid > '0'`).join(" union ")}) used`,
  );
  const [row] = await em.execute<{ missing: string; events: string }[]>(
    `select greatest(0, (select count(*) from renumbered) + 1 - pg_snapshot_xmax(pg_current_snapshot())::text::bigint) as missing,
            (select count(*) from event) as events`,
  );
  const [missing, events] = [Number(row?.missing), Number(row?.events)];
  if (missing > 0) return { missing, events };
  await em.execute("analyze renumbered");
  for (const table of TABLES) {
    await em.execute(`update ${table} t set xid = r.own from renumbered r where t.xid = r.xid`);
  }
  return { missing, events };
}

/** Not each of them need be on disk before the next one. */
const useUp = (transactions: number) => `
  do $$ begin
    set synchronous_commit = off;
    for i in 1..${transactions} loop
      perform pg_current_xact_id();
      commit;
    end loop;
  end $$`;
