/** Something that must hold of the stored state, as of any one moment. */
export type Invariant = Readonly<{
  /** A query for the ids of what breaks it, as `id`. The first table that it names is the one that it is about. */
  broken: string;
  /**
   * A query for one row that says what of it the database can't tell: `skipped`, why nothing at all can be said, and `note`,
   * which part can't. Both are null when all of it can be judged.
   */
  scope?: string;
}>;

/** The table whose rows it is about. */
export function tableOf({ broken }: Invariant): string {
  const table = /\bfrom (\w+)/.exec(broken)?.[1];
  if (!table) throw new Error(`no table is named by ${broken}`);
  return table;
}
