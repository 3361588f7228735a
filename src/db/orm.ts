import { join } from "node:path";
import { Migrator } from "@mikro-orm/migrations";
import { MikroORM, type Options } from "@mikro-orm/postgresql";
import type { Pool } from "pg";
import { Answer } from "./idempotency.entity.ts";
import { discardLostConnections } from "./lost-connections.ts";
import { LimitedClient } from "./silence.ts";

/** Any number that all replicas agree on: the advisory lock under which one of them migrates. */
const MIGRATION_LOCK = 7_304_012;

export type OrmOptions = {
  /** postgres://user:password@host:port/database */
  url: string;
  /** The most connections to hold at a time. */
  poolSize: number;
  /** The entities of all features; those of this folder are added. */
  entities: readonly object[];
};

/** The settings that the service, its migrations and their check share. */
export function ormConfig(options: OrmOptions): Options {
  return {
    clientUrl: options.url,
    // A name with a typo is a mistake to report, not a database to make.
    ensureDatabase: false,
    entities: [...options.entities, Answer] as NonNullable<Options["entities"]>,
    extensions: [Migrator],
    pool: { min: 0, max: options.poolSize },
    // A database that does not answer is reported while the caller still waits.
    driverOptions: {
      connectionTimeoutMillis: 5_000,
      keepAlive: true,
      keepAliveInitialDelayMillis: 10_000,
      pipeline: true,
      Client: LimitedClient,
      onPoolCreated: discardLostConnections,
    },
    migrations: {
      path: join(import.meta.dirname, "migrations"),
      glob: "*.ts",
      tableName: "migration",
      snapshot: false,
      emit: "ts",
    },
    // Entities are plain objects: accessors that track changes would be made anew for each property of each of them.
    propagationOnPrototype: false,
    // Nobody shares an entity manager here: each unit of work forks its own.
    allowGlobalContext: true,
    logger: () => {},
  };
}

/** The pool of connections that the ORM has opened. */
export async function poolOf(orm: MikroORM): Promise<Pool> {
  return orm.em.getConnection().getNativeClient();
}

/** Opens the connection pool. The caller closes it. */
export function createOrm(options: OrmOptions): Promise<MikroORM> {
  return MikroORM.init(ormConfig(options));
}

/** Brings the schema up to date. Replicas that start together wait for the one that is at it. */
export async function migrate(orm: MikroORM): Promise<void> {
  await orm.em.fork().transactional(async (lock) => {
    await lock.execute("select pg_advisory_xact_lock(?)", [MIGRATION_LOCK]);
    await orm.migrator.up();
  });
}

/** Whether all migrations have run. Changes nothing. */
export async function isMigrated(orm: MikroORM): Promise<boolean> {
  // The migrator would make its table when there is none.
  const [row] = await orm.em
    .fork()
    .execute<{ known: boolean }[]>("select to_regclass('migration') is not null as known");
  return row?.known === true && (await orm.migrator.getPending()).length === 0;
}
