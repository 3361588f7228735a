import type { Database } from "../db/database.ts";
import { DomainError } from "../error.ts";
import type { EventType } from "../outbox/event.entity.ts";
import { isAhead, type Position, START, type StoredEvent } from "../outbox/feed.ts";
import type { EventTail } from "../outbox/tail.ts";

export type { EventType, StoredEvent };

/** Some events, or none, and the position to go on from, as a caller has it. */
export type Events = Readonly<{ events: readonly StoredEvent[]; position: string }>;

const LATEST = "latest";

/** What has happened, to whoever keeps up with it. */
export class EventFeed {
  readonly #db: Database;
  readonly #tail: EventTail;

  constructor(db: Database, tail: EventTail) {
    this.#db = db;
    this.#tail = tail;
  }

  /**
   * The events behind a position ("" is from the first one kept, `latest` from now on), of these types or of all, and then
   * those that happen, until `signal` fires.
   *
   * @throws DomainError POSITION_INVALID; POSITION_EXPIRED when events behind it are no longer kept, also in the middle
   */
  async *stream(after: string, types: readonly EventType[], signal: AbortSignal): AsyncGenerator<Events, void> {
    const from = after === LATEST ? undefined : positionOf(after);
    if (from && (await this.#db.read((em) => isAhead(em, from)))) {
      throw new DomainError("POSITION_INVALID", "this database has not come to this position; it is of another one");
    }
    for await (const { events, position } of this.#tail.follow(from, types, signal)) {
      yield { events, position: textOf(position) };
    }
  }
}

const textOf = ({ xid, id }: Position): string => Buffer.from(`${xid}:${id}`).toString("base64url");

function positionOf(text: string): Position {
  if (text === "") return START;
  const groups = /^(?<xid>0|[1-9]\d{0,18}):(?<id>[0-9a-f-]{36})$/.exec(
    Buffer.from(text, "base64url").toString(),
  )?.groups;
  const position = { xid: groups?.xid ?? "", id: groups?.id ?? "" };
  // Made again and compared: base64 reads many texts that it would not write.
  if (!groups || !/^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/.test(position.id) || textOf(position) !== text) {
    throw new DomainError("POSITION_INVALID", "the position is not one that this stream has given out");
  }
  return position;
}
