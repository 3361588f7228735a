/**
 * Every setting of the service: read once from the environment, checked, with its default. An empty variable counts as
 * unset, since that is how compose files and shells hand on what nobody set.
 */
import { resolve } from "node:path";

const LOG_LEVELS = ["trace", "debug", "info", "warn", "error", "fatal", "silent"] as const;
const DEMO = ["auto", "off"] as const;
const PAYMENT_GATEWAYS = ["off", "sandbox", "stripe"] as const;
/** Stripe counts these otherwise than ISO 4217 does, or takes only some of their amounts. */
const NOT_THROUGH_STRIPE = ["BHD", "ISK", "JOD", "KWD", "MGA", "OMR", "TND", "UGX"];

const MAX_INT64 = 2n ** 63n - 1n;
const MINUTE = 60_000;
const DAY = 24 * 60 * MINUTE;

export type Config = {
  /** DATABASE_URL: postgres://user:password@host:port/database. Unset: an embedded Postgres that keeps its data in DATA_DIR. */
  databaseUrl: string | undefined;
  /** DATA_DIR (.data), as an absolute path: the embedded database, and the secret of development tokens. */
  dataDir: string;
  /** HOST (127.0.0.1): the address that both front doors listen on; 0.0.0.0 for all. */
  host: string;
  /** GRPC_PORT (50051): gRPC; 0 picks a free one. */
  grpcPort: number;
  /** HTTP_PORT (8080): Connect, gRPC-Web and health; 0 picks a free one. */
  httpPort: number;
  /** CORS_ORIGINS (none): origins whose pages may call, separated by commas; `*` allows every origin. */
  corsOrigins: readonly string[];
  /** CURRENCY (KRW): the ISO 4217 code of the store's one currency; every amount is in its minor units. */
  currency: string;
  /** MAX_CHARGE (10000000): the most that one charge may add to a wallet, in minor units. */
  maxCharge: bigint;
  /** MAX_BALANCE (1000000000): the most that a wallet may hold, in minor units. */
  maxBalance: bigint;
  /** ORDER_TTL (15m): how long an unpaid order keeps its stock. */
  orderTtlMs: number;
  /**
   * PAYMENT_GATEWAY (off): who takes payments of method EXTERNAL. `sandbox` moves no money, answers by the payment token, and
   * keeps its books in DATA_DIR; `stripe` takes cards.
   */
  paymentGateway: (typeof PAYMENT_GATEWAYS)[number];
  /** Of PAYMENT_GATEWAY=stripe; undefined with any other. */
  stripe: StripeConfig | undefined;
  /** PAYMENT_TIMEOUT (10s): how long the gateway may take to answer before a payment is answered as pending. */
  paymentTimeoutMs: number;
  /** IDEMPOTENCY_TTL (24h): how long an answer is kept for the same request id. */
  idempotencyTtlMs: number;
  /**
   * EVENT_SINK_URL: where events are sent, each as a CloudEvent in a POST; http or https, with `user:password@` for basic
   * authentication. `off` sends them nowhere. Unset: they are appended to events.jsonl in DATA_DIR.
   */
  eventSinkUrl: URL | "off" | undefined;
  /** EVENT_SINK_TIMEOUT (10s): how long the sink may take to answer. */
  eventSinkTimeoutMs: number;
  /** EVENT_MAX_ATTEMPTS (100): how often an event is tried that the sink does not take while it takes others; with the pauses, 100 take over an hour. */
  eventMaxAttempts: number;
  /** EVENT_RETENTION (32d): how long events are kept. The ranking can be rebuilt from those that are there. */
  eventRetentionMs: number;
  /** JWT_SECRET: the shared secret of HS256 tokens, at least 32 characters. Excludes JWKS_URL. */
  jwtSecret: string | undefined;
  /** JWKS_URL: where the token issuer publishes its keys. Neither of the two: a secret is made in DATA_DIR. */
  jwksUrl: string | undefined;
  /** JWT_ISSUER: the `iss` that tokens must carry. */
  jwtIssuer: string | undefined;
  /** JWT_AUDIENCE: the `aud` that tokens must carry. */
  jwtAudience: string | undefined;
  /** DATABASE_POOL (10): the most database connections that this process holds; a migration needs two. */
  databasePool: number;
  /** LOG_LEVEL (info): the least severe messages that are logged. */
  logLevel: (typeof LOG_LEVELS)[number];
  /**
   * SHUTDOWN_GRACE (10s): how long running calls may take to finish at a stop, and callers to leave. The process ends at
   * most four seconds later, the embedded Postgres aside; with exit code 1 when something had to be cut off.
   */
  shutdownGraceMs: number;
  /** DEMO: `auto` loads the demo catalogue into an empty database. Default: auto with the embedded database, else off. */
  demo: (typeof DEMO)[number];
};

export type StripeConfig = Readonly<{
  /** STRIPE_SECRET_KEY: a secret key (sk_...) or a restricted one (rk_...). */
  secretKey: string;
  /** STRIPE_WEBHOOK_SECRET: of the endpoint at /webhooks/stripe (whsec_...). Unset: there is none. */
  webhookSecret: string | undefined;
  /** STRIPE_API_URL (https://api.stripe.com): where the API is. Without TLS only on this machine. */
  apiUrl: URL;
}>;

/** A setting that cannot be used. The message is one line for the operator. */
export class ConfigError extends Error {
  override readonly name = "ConfigError";
}

/** Milliseconds of a number and its unit, such as 90s, 15m or 24h; NaN of anything else. */
export function durationOf(text: string): number {
  const [, count, unit] = /^(\d{1,12})(ms|s|m|h|d)$/.exec(text) ?? [];
  const units: Record<string, number> = { ms: 1, s: 1_000, m: MINUTE, h: 60 * MINUTE, d: DAY };
  return Number(count) * (units[unit ?? ""] ?? Number.NaN);
}

type Environment = Readonly<Record<string, string | undefined>>;

/** Reads settings by name, and refuses those that are not allowed. */
class Settings {
  readonly #env: Environment;

  constructor(env: Environment) {
    this.#env = env;
  }

  text(name: string): string | undefined {
    return this.#env[name]?.trim() || undefined;
  }

  /** Of a value that is not allowed, `shown` is what may be told: nothing of a secret. */
  refuse(name: string, allowed: string, shown = JSON.stringify(this.text(name))): never {
    throw new ConfigError(`${name}${shown ? ` is ${shown}, but` : ""} must be ${allowed}`);
  }

  integer(name: string, fallback: bigint, min: bigint, max: bigint): bigint {
    const text = this.text(name);
    if (text === undefined) return fallback;
    const value = /^\d{1,19}$/.test(text) ? BigInt(text) : -1n;
    if (value < min || value > max) this.refuse(name, `a whole number from ${min} to ${max}`);
    return value;
  }

  port(name: string, fallback: number): number {
    return Number(this.integer(name, BigInt(fallback), 0n, 65_535n));
  }

  /** In milliseconds. */
  duration(name: string, fallback: number, min: [string, number], max: [string, number]): number {
    const text = this.text(name);
    if (text === undefined) return fallback;
    const value = durationOf(text);
    if (!(value >= min[1] && value <= max[1])) {
      this.refuse(name, `a duration such as 90s, 15m or 24h, from ${min[0]} to ${max[0]}`);
    }
    return value;
  }

  oneOf<T extends string>(name: string, fallback: T, values: readonly T[]): T {
    const text = this.text(name) ?? fallback;
    const value = values.find((candidate) => candidate === text);
    return value ?? this.refuse(name, `one of ${values.join(", ")}`);
  }
}

function databaseUrl(settings: Settings): string | undefined {
  const text = settings.text("DATABASE_URL");
  if (text === undefined) return undefined;
  const url = URL.parse(text);
  if (!url || !["postgres:", "postgresql:"].includes(url.protocol) || url.hostname === "") {
    // The URL holds a password, so it is not shown.
    settings.refuse("DATABASE_URL", "like postgres://user:password@host:5432/database", "");
  }
  return text;
}

function host(settings: Settings): string {
  const text = settings.text("HOST") ?? "127.0.0.1";
  return /^[\w.:-]+$/.test(text) ? text : settings.refuse("HOST", "an address or a host name to listen on");
}

function corsOrigins(settings: Settings): readonly string[] {
  const origins = (settings.text("CORS_ORIGINS") ?? "").split(",").flatMap((origin) => origin.trim() || []);
  for (const origin of origins) {
    const url = URL.parse(origin);
    const valid = url !== null && ["http:", "https:"].includes(url.protocol) && url.origin === origin;
    if (origin !== "*" && !valid) {
      settings.refuse("CORS_ORIGINS", "origins like https://shop.example, separated by commas, or *");
    }
  }
  return origins;
}

function currency(settings: Settings): string {
  const code = settings.text("CURRENCY") ?? "KRW";
  return Intl.supportedValuesOf("currency").includes(code)
    ? code
    : settings.refuse("CURRENCY", "an ISO 4217 code like KRW or USD");
}

/** None of what is wrong is shown: it is a secret, or meant to be one. */
function stripe(settings: Settings): StripeConfig | undefined {
  if (settings.text("PAYMENT_GATEWAY") !== "stripe") return undefined;
  if (NOT_THROUGH_STRIPE.includes(currency(settings))) {
    settings.refuse("CURRENCY", `none of ${NOT_THROUGH_STRIPE.join(", ")} with PAYMENT_GATEWAY=stripe`);
  }
  const secretKey = settings.text("STRIPE_SECRET_KEY") ?? "";
  if (!/^[sr]k_\w+$/.test(secretKey)) {
    settings.refuse("STRIPE_SECRET_KEY", "a key like sk_... or rk_... with PAYMENT_GATEWAY=stripe", "");
  }
  const webhookSecret = settings.text("STRIPE_WEBHOOK_SECRET");
  if (webhookSecret !== undefined && !/^whsec_\S+$/.test(webhookSecret)) {
    settings.refuse("STRIPE_WEBHOOK_SECRET", "the signing secret of an endpoint, like whsec_...", "");
  }
  const url = URL.parse(settings.text("STRIPE_API_URL") ?? "https://api.stripe.com");
  const local = url?.protocol === "http:" && ["127.0.0.1", "[::1]", "localhost"].includes(url.hostname);
  if (!url || !(local || url.protocol === "https:") || url.href !== `${url.origin}/`) {
    return settings.refuse("STRIPE_API_URL", "an https URL without a path, or http on this machine", "");
  }
  return { secretKey, webhookSecret, apiUrl: url };
}

function eventSinkUrl(settings: Settings): URL | "off" | undefined {
  const text = settings.text("EVENT_SINK_URL");
  if (text === undefined || text === "off") return text;
  const url = URL.parse(text);
  // The URL may hold a password, so it is not shown.
  if (!url || !["http:", "https:"].includes(url.protocol)) {
    return settings.refuse("EVENT_SINK_URL", "an http or https URL, or off", "");
  }
  try {
    // As they are sent.
    decodeURIComponent(url.username + url.password);
  } catch {
    settings.refuse("EVENT_SINK_URL", "a URL with the user and password percent-encoded (% itself is %25)", "");
  }
  return url;
}

function jwtSecret(settings: Settings): string | undefined {
  const secret = settings.text("JWT_SECRET");
  if (secret !== undefined && secret.length < 32) {
    settings.refuse("JWT_SECRET", `at least 32 characters long, not ${secret.length}`, "");
  }
  return secret;
}

function jwksUrl(settings: Settings): string | undefined {
  const text = settings.text("JWKS_URL");
  if (text === undefined) return undefined;
  if (settings.text("JWT_SECRET") !== undefined) {
    throw new ConfigError("JWT_SECRET and JWKS_URL are both set, but only one of them can say which tokens are good");
  }
  const protocol = URL.parse(text)?.protocol ?? "";
  return ["http:", "https:"].includes(protocol) ? text : settings.refuse("JWKS_URL", "an http or https URL");
}

/**
 * Reads all settings.
 *
 * @throws ConfigError naming the first setting that is wrong, and what is allowed
 */
export function readConfig(env: Environment): Config {
  const settings = new Settings(env);
  const url = databaseUrl(settings);
  return {
    databaseUrl: url,
    dataDir: resolve(settings.text("DATA_DIR") ?? ".data"),
    host: host(settings),
    grpcPort: settings.port("GRPC_PORT", 50_051),
    httpPort: settings.port("HTTP_PORT", 8_080),
    corsOrigins: corsOrigins(settings),
    currency: currency(settings),
    maxCharge: settings.integer("MAX_CHARGE", 10_000_000n, 1n, MAX_INT64),
    maxBalance: settings.integer("MAX_BALANCE", 1_000_000_000n, 1n, MAX_INT64),
    orderTtlMs: settings.duration("ORDER_TTL", 15 * MINUTE, ["1s", 1_000], ["365d", 365 * DAY]),
    paymentGateway: settings.oneOf("PAYMENT_GATEWAY", "off", PAYMENT_GATEWAYS),
    stripe: stripe(settings),
    paymentTimeoutMs: settings.duration("PAYMENT_TIMEOUT", 10_000, ["100ms", 100], ["5m", 5 * MINUTE]),
    idempotencyTtlMs: settings.duration("IDEMPOTENCY_TTL", DAY, ["1s", 1_000], ["365d", 365 * DAY]),
    eventSinkUrl: eventSinkUrl(settings),
    eventSinkTimeoutMs: settings.duration("EVENT_SINK_TIMEOUT", 10_000, ["100ms", 100], ["5m", 5 * MINUTE]),
    eventMaxAttempts: Number(settings.integer("EVENT_MAX_ATTEMPTS", 100n, 1n, 1_000_000n)),
    eventRetentionMs: settings.duration("EVENT_RETENTION", 32 * DAY, ["1m", MINUTE], ["3650d", 3_650 * DAY]),
    jwtSecret: jwtSecret(settings),
    jwksUrl: jwksUrl(settings),
    jwtIssuer: settings.text("JWT_ISSUER"),
    jwtAudience: settings.text("JWT_AUDIENCE"),
    databasePool: Number(settings.integer("DATABASE_POOL", 10n, 2n, 1_000n)),
    logLevel: settings.oneOf("LOG_LEVEL", "info", LOG_LEVELS),
    shutdownGraceMs: settings.duration("SHUTDOWN_GRACE", 10_000, ["0s", 0], ["10m", 10 * MINUTE]),
    demo: settings.oneOf("DEMO", url === undefined ? "auto" : "off", DEMO),
  };
}
