/** What runs in the background, in every process: with app.ts, the only file that knows every feature. */
import { join } from "node:path";
import type { Logger } from "pino";
import type { Config } from "./config.ts";
import type { Database } from "./db/database.ts";
import { oldAnswers, purgeAnswers } from "./db/idempotency.ts";
import { every, type Job, type JobObserver } from "./db/job.ts";
import { type Lag, lagOf, type Waiting } from "./db/lag.ts";
import { expireOverdue, overdueOrders } from "./order/expiry.ts";
import { fileSink } from "./outbox/file-sink.ts";
import { httpSink } from "./outbox/http-sink.ts";
import { Relay, type RelayObserver, SINK, undeliveredEvents } from "./outbox/relay.ts";
import { oldEvents, purgeEvents, type Reader } from "./outbox/retention.ts";
import type { Sink } from "./outbox/sink.ts";
import type { External } from "./payment/external.ts";
import { unmadeRefunds, unsettledPayments } from "./payment/unsettled.ts";
import { dropOldBuckets, oldBuckets, rankedTypes, SALES, uncountedSales } from "./ranking/projection.ts";
import type { Ranking } from "./ranking/ranking.service.ts";

/** How often the jobs look for work, in milliseconds, and how much they take at a time. */
const PROJECT_INTERVAL = 100;
const RELAY_INTERVAL = 100;
const RETRY_INTERVAL = 1_000;
const EXPIRE_INTERVAL = 1_000;
const EXPIRE_BATCH = 100;
const RECONCILE_INTERVAL = 1_000;
const RECONCILE_BATCH = 20;
const PURGE_INTERVAL = 30_000;
const PURGE_BATCH = 5_000;
const LAG_INTERVAL = 60_000;
/** A job that is further behind, in seconds, does not keep up, or not at all. */
const LAG_LIMIT = 60;

export type Features = Readonly<{ db: Database; ranking: Ranking; external: External | undefined }>;

/** Starts all of them but the relay. Each is safe to run in any number of processes at once. */
export function startJobs(config: Config, log: Logger, features: Features): Job[] {
  const { db, ranking, external } = features;
  const observe = (job: string) => jobObserverOf(log, job);
  const jobs = [
    every(PROJECT_INTERVAL, () => ranking.project(), observe("ranking")),
    every(EXPIRE_INTERVAL, () => expire(log, db), observe("order expiry")),
    ...startPurges(config, db, observe),
    watchLags(config, log, db, LAG_INTERVAL),
  ];
  if (external) {
    jobs.push(every(RECONCILE_INTERVAL, (signal) => external.reconcile(RECONCILE_BATCH, signal), observe("payments")));
  }
  return jobs;
}

/** Orders that can't be expired are in nobody's way, and not a failure of the job: it goes on at its pace. */
async function expire(log: Logger, db: Database): Promise<boolean> {
  const { claimed, failures } = await expireOverdue(db, EXPIRE_BATCH);
  const [err] = failures;
  if (err) log.warn({ orders: failures.length, err }, "orders could not be expired; they are tried again");
  return claimed >= EXPIRE_BATCH;
}

function startPurges(config: Config, db: Database, observe: (job: string) => JobObserver): Job[] {
  const ago = (ms: number) => new Date(db.now().getTime() - ms);
  const answers = async () => {
    const before = ago(config.idempotencyTtlMs);
    return (await db.maintain((em) => purgeAnswers(em, before, PURGE_BATCH))) === PURGE_BATCH;
  };
  const events = async () => {
    const before = ago(config.eventRetentionMs);
    return (await db.maintain((em) => purgeEvents(em, before, PURGE_BATCH, readersOf(config)))) === PURGE_BATCH;
  };
  const buckets = async () => {
    return (await db.maintain((em) => dropOldBuckets(em, db.now(), PURGE_BATCH))) === PURGE_BATCH;
  };
  return [
    every(PURGE_INTERVAL, answers, observe("idempotency purge")),
    every(PURGE_INTERVAL, events, observe("event retention")),
    every(PURGE_INTERVAL, buckets, observe("ranking retention")),
  ];
}

/** Who has to have an event before it may be deleted. */
function readersOf({ eventSinkUrl }: Config): readonly Reader[] {
  const sales = { name: SALES, types: rankedTypes };
  return eventSinkUrl === "off" ? [sales] : [sales, { name: SINK }];
}

/** What waits for each job, whoever runs it. */
function waitingOf(config: Config): Readonly<Record<string, Waiting>> {
  return {
    "order expiry": overdueOrders,
    payments: unsettledPayments(config.paymentTimeoutMs),
    refunds: unmadeRefunds,
    ranking: uncountedSales,
    ...(config.eventSinkUrl !== "off" && { "event relay": undeliveredEvents }),
    "event retention": oldEvents(config.eventRetentionMs, readersOf(config)),
    "idempotency purge": oldAnswers(config.idempotencyTtlMs),
    "ranking retention": oldBuckets,
  };
}

export type JobLag = Lag & Readonly<{ job: string }>;

/** How far behind each job is, of all processes on the database together. @throws DomainError DATABASE_UNAVAILABLE */
export function lagsOf(config: Config, db: Database): Promise<JobLag[]> {
  return db.read(async (em) => {
    const lags: JobLag[] = [];
    for (const [job, waiting] of Object.entries(waitingOf(config))) {
      lags.push({ job, ...(await lagOf(em, waiting)) });
    }
    return lags;
  });
}

/** Tells the log once when a job is behind, and once when it is not any more; looks every `interval` milliseconds. */
export function watchLags(config: Config, log: Logger, db: Database, interval: number): Job {
  const behind = new Set<string>();
  const look = async () => {
    for (const lag of await lagsOf(config, db)) {
      const { job } = lag;
      if (lag.seconds > LAG_LIMIT && !behind.has(job)) {
        behind.add(job);
        log.warn(lag, "a background job is behind");
      } else if (lag.seconds <= LAG_LIMIT && behind.delete(job)) {
        log.info({ job }, "a background job has caught up");
      }
    }
    return false;
  };
  return every(interval, look, jobObserverOf(log, "lag watch"));
}

/** Begins to deliver events; undefined when they go nowhere. */
export function startRelay(config: Config, log: Logger, db: Database): Job | undefined {
  const sink = sinkOf(config);
  if (!sink) return undefined;
  const relay = new Relay({ db, sink, maxAttempts: config.eventMaxAttempts, observer: relayObserverOf(log, sink) });
  const jobs = [
    every(RELAY_INTERVAL, () => relay.run(), jobObserverOf(log, "event relay")),
    every(RETRY_INTERVAL, () => relay.retry(), jobObserverOf(log, "event retries")),
  ];
  return {
    async stop() {
      relay.abort();
      await Promise.all(jobs.map((job) => job.stop()));
      await relay.close();
    },
  };
}

/** Where events go; undefined when they go nowhere. */
function sinkOf({ eventSinkUrl, eventSinkTimeoutMs, dataDir }: Config): Sink | undefined {
  if (eventSinkUrl === "off") return undefined;
  return eventSinkUrl ? httpSink(eventSinkUrl, eventSinkTimeoutMs) : fileSink(join(dataDir, "events.jsonl"));
}

function relayObserverOf(log: Logger, { name: sink }: Sink): RelayObserver {
  return {
    down: ({ attempts, pauseMs, error }) =>
      log.warn(
        { sink, attempts, pauseMs: Math.round(pauseMs), error },
        "the event sink takes nothing; it is tried again",
      ),
    up: () => log.info({ sink }, "the event sink takes events again"),
    dead: ({ id, type, aggregateid }, { attempts, error }) =>
      log.error({ sink, id, type, aggregateid, attempts, error }, "an event was given up; `npm run events` replays it"),
  };
}

/** Tells the log how a job fares. */
export function jobObserverOf(log: Logger, job: string): JobObserver {
  return {
    failed: (err) => log.error({ err, job }, "a background job failed; it is tried again"),
    recovered: () => log.info({ job }, "a background job works again"),
  };
}
