import type { EntityManager } from "@mikro-orm/postgresql";
import type { Position } from "./feed.ts";

/** How long a process that says nothing stays the one that relays, in seconds. */
export const LEASE_S = 3;

/** Another process has become the one that relays. */
export class LeaseLost extends Error {
  override readonly name = "LeaseLost";
}

/** By the clock of the database: those of processes differ. */
const LEASE_END = `clock_timestamp() + interval '${LEASE_S} s'`;

/**
 * Becomes, or stays, the process that relays to `name`, and answers how far that has come; undefined while somebody else
 * does it. A row and not an advisory lock, which would belong to a session: behind a pooler nobody knows whose.
 */
export async function claim(em: EntityManager, name: string, owner: string): Promise<Position | undefined> {
  const [row] = await em.execute<Position[]>(
    `update event_reader set owner = ?, lease_end = ${LEASE_END}
      where name = ? and (owner = ? or owner is null or lease_end < clock_timestamp())
      returning xid::text as xid, event_id as id`,
    [owner, name, owner],
  );
  return row;
}

/** Lets somebody else relay at once. */
export async function release(em: EntityManager, name: string, owner: string): Promise<void> {
  await em.execute("update event_reader set owner = null where name = ? and owner = ?", [name, owner]);
}

/** Moves on behind the last event that was taken care of. @throws LeaseLost when somebody else does that now */
export async function advance(em: EntityManager, name: string, owner: string, to: Position): Promise<void> {
  const [row] = await em.execute<{ name: string }[]>(
    `update event_reader set xid = ?::xid8, event_id = ?, lease_end = ${LEASE_END}
      where name = ? and owner = ? and (xid, event_id) < (?::xid8, ?::uuid) returning name`,
    [to.xid, to.id, name, owner, to.xid, to.id],
  );
  if (!row) throw new LeaseLost(`another process relays the events to ${name}`);
}
