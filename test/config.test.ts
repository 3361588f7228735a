import { resolve } from "node:path";
import { describe, expect, test } from "vitest";
import { ConfigError, readConfig } from "../src/config.ts";

const SECRET = "0123456789abcdef0123456789abcdef";

test("without settings, everything has its default", () => {
  expect(readConfig({})).toEqual({
    databaseUrl: undefined,
    dataDir: resolve(".data"),
    host: "127.0.0.1",
    grpcPort: 50_051,
    httpPort: 8_080,
    corsOrigins: [],
    currency: "KRW",
    maxCharge: 10_000_000n,
    maxBalance: 1_000_000_000n,
    orderTtlMs: 900_000,
    idempotencyTtlMs: 86_400_000,
    paymentGateway: "off",
    stripe: undefined,
    paymentTimeoutMs: 10_000,
    eventSinkUrl: undefined,
    eventSinkTimeoutMs: 10_000,
    eventMaxAttempts: 100,
    eventRetentionMs: 32 * 86_400_000,
    jwtSecret: undefined,
    jwksUrl: undefined,
    jwtIssuer: undefined,
    jwtAudience: undefined,
    databasePool: 10,
    logLevel: "info",
    shutdownGraceMs: 10_000,
    demo: "auto",
  });
});

test("every setting is read", () => {
  const config = readConfig({
    DATABASE_URL: "postgres://shop:secret@db:5432/shop",
    DATA_DIR: "/srv/data",
    HOST: "::1",
    GRPC_PORT: "0",
    HTTP_PORT: "65535",
    CORS_ORIGINS: "https://a.example, http://localhost:5173,",
    CURRENCY: "USD",
    MAX_CHARGE: "9223372036854775807",
    MAX_BALANCE: "1",
    ORDER_TTL: "90s",
    IDEMPOTENCY_TTL: "7d",
    PAYMENT_GATEWAY: "sandbox",
    PAYMENT_TIMEOUT: "3s",
    EVENT_SINK_URL: "https://user:secret@events.example/in?x=1",
    EVENT_SINK_TIMEOUT: "2s",
    EVENT_MAX_ATTEMPTS: "3",
    EVENT_RETENTION: "1h",
    JWT_SECRET: SECRET,
    JWT_ISSUER: "issuer",
    JWT_AUDIENCE: "shop",
    DATABASE_POOL: "25",
    LOG_LEVEL: "debug",
    SHUTDOWN_GRACE: "500ms",
    DEMO: "auto",
  });
  expect(config).toEqual({
    databaseUrl: "postgres://shop:secret@db:5432/shop",
    dataDir: "/srv/data",
    host: "::1",
    grpcPort: 0,
    httpPort: 65_535,
    corsOrigins: ["https://a.example", "http://localhost:5173"],
    currency: "USD",
    maxCharge: 2n ** 63n - 1n,
    maxBalance: 1n,
    orderTtlMs: 90_000,
    idempotencyTtlMs: 604_800_000,
    paymentGateway: "sandbox",
    stripe: undefined,
    paymentTimeoutMs: 3_000,
    eventSinkUrl: new URL("https://user:secret@events.example/in?x=1"),
    eventSinkTimeoutMs: 2_000,
    eventMaxAttempts: 3,
    eventRetentionMs: 3_600_000,
    jwtSecret: SECRET,
    jwksUrl: undefined,
    jwtIssuer: "issuer",
    jwtAudience: "shop",
    databasePool: 25,
    logLevel: "debug",
    shutdownGraceMs: 500,
    demo: "auto",
  });
  expect(readConfig({ EVENT_SINK_URL: "off" }).eventSinkUrl).toBe("off");
  expect(readConfig({ JWKS_URL: "https://issuer.example/jwks" }).jwksUrl).toBe("https://issuer.example/jwks");
});

test("the demo catalogue stays out of a database that is not ours", () => {
  expect(readConfig({ DATABASE_URL: "postgres://db/shop" }).demo).toBe("off");
});

test("an empty variable is an unset one", () => {
  expect(readConfig({ DATABASE_URL: "", GRPC_PORT: " ", JWT_SECRET: "", JWKS_URL: "" })).toEqual(readConfig({}));
});

describe("a bad setting is refused with one line that names it", () => {
  const cases: [name: string, value: string, message: RegExp][] = [
    ["DATABASE_URL", "mysql://root:hunter2@db/shop", /^DATABASE_URL must be like postgres:/],
    ["DATABASE_URL", "postgres:hunter2", /^DATABASE_URL must be like postgres:/],
    ["HOST", "not a host", /^HOST is "not a host", but must be an address/],
    ["GRPC_PORT", "65536", /^GRPC_PORT is "65536", but must be a whole number from 0 to 65535$/],
    ["HTTP_PORT", "http", /^HTTP_PORT is "http", but must be/],
    ["HTTP_PORT", "-1", /^HTTP_PORT is "-1", but must be/],
    ["CORS_ORIGINS", "https://a.example/path", /^CORS_ORIGINS is .* but must be origins like/],
    ["CORS_ORIGINS", "a.example", /^CORS_ORIGINS is /],
    ["CURRENCY", "WON", /^CURRENCY is "WON", but must be an ISO 4217 code/],
    ["MAX_CHARGE", "0", /^MAX_CHARGE is "0", but must be a whole number from 1 to 9223372036854775807$/],
    ["MAX_BALANCE", "9223372036854775808", /^MAX_BALANCE is /],
    ["MAX_BALANCE", "1e9", /^MAX_BALANCE is "1e9", but must be a whole number/],
    ["ORDER_TTL", "15", /^ORDER_TTL is "15", but must be a duration such as 90s, 15m or 24h, from 1s to 365d$/],
    ["ORDER_TTL", "0s", /^ORDER_TTL is "0s", but must be a duration/],
    ["IDEMPOTENCY_TTL", "1 day", /^IDEMPOTENCY_TTL is "1 day"/],
    ["PAYMENT_GATEWAY", "paypal", /^PAYMENT_GATEWAY is "paypal", but must be one of off, sandbox, stripe$/],
    ["PAYMENT_TIMEOUT", "1ms", /^PAYMENT_TIMEOUT is "1ms", but must be a duration/],
    ["EVENT_SINK_URL", "ftp://root:hunter2@sink", /^EVENT_SINK_URL must be an http or https URL, or off$/],
    [
      "EVENT_SINK_URL",
      "https://u:hunter2%@sink",
      /^EVENT_SINK_URL must be a URL with the user and password percent-enc/,
    ],
    ["EVENT_SINK_URL", "https://hunter2%zz:p@sink", /^EVENT_SINK_URL must be a URL with the user and password percent/],
    ["EVENT_MAX_ATTEMPTS", "0", /^EVENT_MAX_ATTEMPTS is "0", but must be a whole number from 1 to 1000000$/],
    ["EVENT_RETENTION", "1s", /^EVENT_RETENTION is "1s"/],
    ["JWT_SECRET", "hunter2", /^JWT_SECRET must be at least 32 characters long, not 7$/],
    ["JWKS_URL", "issuer", /^JWKS_URL is "issuer", but must be an http or https URL$/],
    ["DATABASE_POOL", "1", /^DATABASE_POOL is "1", but must be a whole number from 2 to 1000$/],
    ["LOG_LEVEL", "loud", /^LOG_LEVEL is "loud", but must be one of trace, debug,/],
    ["SHUTDOWN_GRACE", "11m", /^SHUTDOWN_GRACE is "11m".* from 0s to 10m$/],
    ["DEMO", "on", /^DEMO is "on", but must be one of auto, off$/],
  ];

  test.each(cases)("%s=%s", (name, value, message) => {
    const read = () => readConfig({ [name]: value });
    expect(read).toThrow(ConfigError);
    expect(read).toThrow(message);
    expect(read).not.toThrow(/hunter2|\n/);
  });

  test("JWT_SECRET together with JWKS_URL", () => {
    const read = () => readConfig({ JWT_SECRET: SECRET, JWKS_URL: "https://issuer.example/jwks" });
    expect(read).toThrow(/^JWT_SECRET and JWKS_URL are both set/);
    expect(read).not.toThrow(SECRET);
  });
});

describe("Stripe", () => {
  const stripe = { PAYMENT_GATEWAY: "stripe", STRIPE_SECRET_KEY: "sk_test_hunter2" };

  test("its settings are read where it is the gateway, and nowhere else", () => {
    expect(readConfig(stripe).stripe).toEqual({
      secretKey: "sk_test_hunter2",
      webhookSecret: undefined,
      apiUrl: new URL("https://api.stripe.com"),
    });
    const others = { STRIPE_WEBHOOK_SECRET: "whsec_1", STRIPE_API_URL: "http://127.0.0.1:12111" };
    expect(readConfig({ ...stripe, ...others }).stripe).toMatchObject({
      webhookSecret: "whsec_1",
      apiUrl: new URL("http://127.0.0.1:12111"),
    });
    expect(readConfig({ STRIPE_SECRET_KEY: "hunter2" }).stripe).toBeUndefined();
  });

  const cases: [name: string, value: string, message: RegExp][] = [
    [
      "STRIPE_SECRET_KEY",
      "",
      /^STRIPE_SECRET_KEY must be a key like sk_\.\.\. or rk_\.\.\. with PAYMENT_GATEWAY=stripe$/,
    ],
    ["STRIPE_SECRET_KEY", "pk_test_hunter2", /^STRIPE_SECRET_KEY must be/],
    ["STRIPE_WEBHOOK_SECRET", "hunter2", /^STRIPE_WEBHOOK_SECRET must be the signing secret of an endpoint/],
    ["STRIPE_API_URL", "http://hunter2.example", /^STRIPE_API_URL must be an https URL without a path/],
    ["STRIPE_API_URL", "https://api.stripe.com/hunter2", /^STRIPE_API_URL must be/],
    ["STRIPE_API_URL", "https://u:hunter2@api.stripe.com", /^STRIPE_API_URL must be/],
    ["CURRENCY", "KWD", /^CURRENCY is "KWD", but must be none of BHD, ISK, .* with PAYMENT_GATEWAY=stripe$/],
    ["CURRENCY", "ISK", /^CURRENCY is "ISK"/],
  ];

  test.each(cases)("%s=%s is refused", (name, value, message) => {
    const read = () => readConfig({ ...stripe, [name]: value });
    expect(read).toThrow(ConfigError);
    expect(read).toThrow(message);
    expect(read).not.toThrow(/hunter2|\n/);
  });
});
