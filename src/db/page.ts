import { DomainError } from "../error.ts";

const DEFAULT_SIZE = 50;
const LARGEST_SIZE = 1000;

/** What a caller asks of a list: 0 is the default size, "" the first page. */
export type PageRequest = Readonly<{ pageSize: number; pageToken: string }>;

/** `nextPageToken` is empty on the last page. */
export type Page<T> = Readonly<{ items: readonly T[]; nextPageToken: string }>;

const tokenOf = (list: string, key: string) => Buffer.from(`${list}:${key}`).toString("base64url");

/** Lists ordered by a UUIDv7. */
export const byId = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/;
/** Lists ordered by a number that counts from 1; of as many digits as surely fit into a bigint. */
export const bySeq = /^[1-9][0-9]{0,17}$/;

function keyOf(list: string, token: string, pattern: RegExp): string {
  const text = Buffer.from(token, "base64url").toString();
  const key = text.slice(list.length + 1);
  // Made again and compared: base64 reads many texts that it would not write.
  if (!pattern.test(key) || tokenOf(list, key) !== token) {
    throw new DomainError("PAGE_TOKEN_INVALID", "the page token is not one that this list has given out");
  }
  return key;
}

/**
 * One page of a list. `query` returns up to `limit` rows that come after the row with the key `after`.
 *
 * @throws DomainError PAGE_TOKEN_INVALID for a token that this list did not give out
 */
export async function pageOf<T>(
  list: string,
  request: PageRequest,
  pattern: RegExp,
  key: (row: T) => string,
  query: (after: string | undefined, limit: number) => Promise<T[]>,
): Promise<Page<T>> {
  const size = request.pageSize === 0 ? DEFAULT_SIZE : Math.min(request.pageSize, LARGEST_SIZE);
  const after = request.pageToken === "" ? undefined : keyOf(list, request.pageToken, pattern);
  const rows = await query(after, size + 1);
  const items = rows.slice(0, size);
  const last = items.at(-1);
  return { items, nextPageToken: rows.length > size && last ? tokenOf(list, key(last)) : "" };
}
