/** Composition root: with jobs.ts, the only file that knows every feature. */
import type { MikroORM } from "@mikro-orm/postgresql";
import type { Logger } from "pino";
import { BalanceService } from "../gen/shop/v1/balance_pb.ts";
import { CartService } from "../gen/shop/v1/cart_pb.ts";
import { CouponService } from "../gen/shop/v1/coupon_pb.ts";
import { EventService } from "../gen/shop/v1/event_pb.ts";
import { OrderService } from "../gen/shop/v1/order_pb.ts";
import { PaymentService } from "../gen/shop/v1/payment_pb.ts";
import { ProductService } from "../gen/shop/v1/product_pb.ts";
import { RankingService } from "../gen/shop/v1/ranking_pb.ts";
import { UserService } from "../gen/shop/v1/user_pb.ts";
import { LedgerEntry, Wallet } from "./balance/balance.entity.ts";
import { balanceHandler } from "./balance/balance.handler.ts";
import { Balances } from "./balance/balance.service.ts";
import { bannerOf } from "./banner.ts";
import { Cart, CartItem } from "./cart/cart.entity.ts";
import { cartHandler } from "./cart/cart.handler.ts";
import { Carts } from "./cart/cart.service.ts";
import type { Config } from "./config.ts";
import { Coupon, IssuedCoupon } from "./coupon/coupon.entity.ts";
import { couponHandler } from "./coupon/coupon.handler.ts";
import { Coupons } from "./coupon/coupon.service.ts";
import type { BatchObserver } from "./db/batch.ts";
import { Database } from "./db/database.ts";
import { EMBEDDED_STOP_LIMIT, startEmbeddedPostgres } from "./db/embedded.ts";
import { listen } from "./db/listen.ts";
import { createOrm, migrate } from "./db/orm.ts";
import { loadDemo } from "./demo.ts";
import { eventHandler } from "./event/event.handler.ts";
import { EventFeed } from "./event/event.service.ts";
import { gatewayNameOf, openGateway } from "./gateways.ts";
import { jobObserverOf, startJobs, startRelay } from "./jobs.ts";
import { Order, OrderLine } from "./order/order.entity.ts";
import { orderHandler } from "./order/order.handler.ts";
import { Orders } from "./order/order.service.ts";
import { EventReader, UndeliveredEvent } from "./outbox/delivery.entity.ts";
import { Event } from "./outbox/event.entity.ts";
import { assertNotRestored } from "./outbox/rebase.ts";
import { EventTail } from "./outbox/tail.ts";
import type { External } from "./payment/external.ts";
import { GatewayRefund, Payment, PaymentEvent } from "./payment/payment.entity.ts";
import { paymentHandler } from "./payment/payment.handler.ts";
import { Payments } from "./payment/payment.service.ts";
import { unsettledElsewhere } from "./payment/unsettled.ts";
import { Product, Variant } from "./product/product.entity.ts";
import { productHandler } from "./product/product.handler.ts";
import { Products } from "./product/product.service.ts";
import { CHANNEL } from "./ranking/projection.ts";
import { RankingBucket, RankingTotal, RankingWindow } from "./ranking/ranking.entity.ts";
import { rankingHandler } from "./ranking/ranking.handler.ts";
import { Ranking } from "./ranking/ranking.service.ts";
import { RankingWatch } from "./ranking/watch.ts";
import { createVerifier } from "./rpc/auth.ts";
import { loadSecret } from "./rpc/secret.ts";
import { route, serve } from "./rpc/server.ts";
import { Started } from "./started.ts";
import { User } from "./user/user.entity.ts";
import { userHandler } from "./user/user.handler.ts";
import { Users } from "./user/user.service.ts";

/** Everything that is stored, besides what the database layer keeps for itself. */
export const entities = [
  User,
  Wallet,
  LedgerEntry,
  Product,
  Variant,
  Coupon,
  IssuedCoupon,
  Cart,
  CartItem,
  Order,
  OrderLine,
  Payment,
  PaymentEvent,
  GatewayRefund,
  Event,
  EventReader,
  UndeliveredEvent,
  RankingBucket,
  RankingWindow,
  RankingTotal,
];

export type App = Readonly<{
  /** What to tell the person who started it. */
  banner: string;
  /** Resolves when the service can't go on. */
  failed: Promise<Error>;
  /**
   * Finishes what runs, then lets go of everything: within SHUTDOWN_GRACE and four seconds, plus what the embedded
   * Postgres needs. Answers whether all of it stopped; what did not is in the log, and ends with the process.
   */
  stop(): Promise<boolean>;
}>;

/** How long the front doors may take to stop beyond SHUTDOWN_GRACE, in milliseconds. */
const DOORS_MARGIN = 2_000;

/** Starts the service. @throws Error with one line for the operator; nothing is left running then */
export async function start(config: Config, log: Logger): Promise<App> {
  const started = new Started(log);
  try {
    return await startAll(config, log, started);
  } catch (error) {
    await started.stop();
    throw error;
  }
}

async function startAll(config: Config, log: Logger, started: Started): Promise<App> {
  const secret = config.jwksUrl ? undefined : loadSecret({ secret: config.jwtSecret, dataDir: config.dataDir });
  const embedded = config.databaseUrl ? undefined : await startEmbeddedPostgres({ dataDir: config.dataDir, log });
  if (embedded) started.add("embedded Postgres", () => embedded.stop(), EMBEDDED_STOP_LIMIT);
  const url = embedded?.url ?? config.databaseUrl ?? "";
  const orm = await createOrm({ url, poolSize: config.databasePool, entities });
  started.add("database connections", () => orm.close());
  await migrate(orm);
  await assertNotRestored(orm.em.fork());
  for (const waiting of await unsettledElsewhere(orm.em.fork(), gatewayNameOf(config))) {
    log.error(waiting, "payments or refunds wait for a gateway that is not set up: nobody asks it");
  }
  if (config.demo === "auto") await loadDemo(orm);

  const db = await Database.open(orm, { observer: observerOf(log) });
  const gateway = await openGateway(config, db, log);
  const external = gateway?.external;
  const orders = new Orders(db, config.orderTtlMs, external?.name);
  const ranking = new Ranking(db);
  const jobs = startJobs(config, log, { db, ranking, external });
  started.add("background jobs", () => Promise.all(jobs.map((job) => job.stop())));
  const relay = startRelay(config, log, db);
  if (relay) started.addBeside("event relay", () => relay.stop());
  const watching = new RankingWatch((query) => ranking.top(query), jobObserverOf(log, "ranking watch"));
  const listener = listen(url, CHANNEL, () => watching.hint(), jobObserverOf(log, "listener").failed);
  started.addBeside("listener", () => listener.stop());
  const tail = new EventTail(db, jobObserverOf(log, "event tail"));

  const served = await serve({
    host: config.host,
    grpcPort: config.grpcPort,
    httpPort: config.httpPort,
    corsOrigins: config.corsOrigins,
    routes: [
      ...routesOf(config, db, orders, external),
      route(RankingService, rankingHandler(ranking, watching)),
      route(EventService, eventHandler(new EventFeed(db, tail))),
    ],
    webhooks: gateway?.webhooks,
    verifier: createVerifier(secret ? { secret } : { jwksUrl: config.jwksUrl ?? "" }, {
      issuer: config.jwtIssuer,
      audience: config.jwtAudience,
    }),
    log,
    overload: () => db.overload,
    ready: () => isReady(orm),
  });
  started.add("front doors", () => served.stop(config.shutdownGraceMs), config.shutdownGraceMs + DOORS_MARGIN);
  // A secret that somebody has set is theirs: only with the one made for development are tokens printed.
  const banner = await bannerOf(config, served, orm, config.jwtSecret ? undefined : secret);
  return { banner, failed: embedded?.exited ?? new Promise(() => {}), stop: () => started.stop() };
}

function routesOf(config: Config, db: Database, orders: Orders, external: External | undefined) {
  return [
    route(UserService, userHandler(new Users(db))),
    route(BalanceService, balanceHandler(new Balances(db, config))),
    route(ProductService, productHandler(new Products(db))),
    route(CartService, cartHandler(new Carts(db))),
    route(CouponService, couponHandler(new Coupons(db))),
    route(OrderService, orderHandler(orders)),
    route(PaymentService, paymentHandler(new Payments(db, external))),
  ];
}

/** Of the group commit. */
function observerOf(log: Logger): BatchObserver {
  return {
    conflicted: (batch) => log.debug(batch, "another process was faster on the same rows"),
    split: ({ size, cause }) => log.error({ size, err: cause }, "a batch can't be written and is split"),
  };
}

const isReady = async (orm: MikroORM): Promise<boolean> => (await orm.checkConnection()).ok;
