import { isIPv6 } from "node:net";
import type { MikroORM } from "@mikro-orm/postgresql";
import type { Config } from "./config.ts";
import { sign } from "./rpc/auth.ts";

type Ports = Readonly<{ grpcPort: number; httpPort: number }>;

/** How long the printed tokens are valid. */
const TTL = "24h";

/** What to tell the person who started it: where it is, and, in development, how to buy something at once. */
export async function bannerOf(
  config: Config,
  ports: Ports,
  orm: MikroORM,
  developmentSecret: Uint8Array | undefined,
): Promise<string> {
  // The colons of an IPv6 address would be taken for the port's.
  const host = isIPv6(config.host) ? `[${config.host}]` : config.host;
  const grpc = `${host}:${ports.grpcPort}`;
  const http = `http://${host}:${ports.httpPort}`;
  const amounts = `minor units of ${config.currency}`;
  const lines = ["", "Doorbuster is ready", `  gRPC     ${grpc}`, `  Connect  ${http}`, `  Amounts  ${amounts}`];
  const gateway = config.paymentGateway;
  if (gateway !== "off") lines.push(`  Gateway  ${gateway}${gateway === "sandbox" ? ", which moves no money" : ""}`);
  if (developmentSecret) lines.push(...(await developmentLines(config, grpc, http, orm, developmentSecret)));
  else
    lines.push(
      `  Tokens   ${config.jwksUrl ? "of your issuer" : "npm run -s token -- --role service, with the same JWT_SECRET"}`,
    );
  return `${lines.join("\n")}\n`;
}

async function developmentLines(
  config: Config,
  grpc: string,
  http: string,
  orm: MikroORM,
  secret: Uint8Array,
): Promise<string[]> {
  const claims = { issuer: config.jwtIssuer, audience: config.jwtAudience, ttl: TTL };
  const admin = await sign(secret, { ...claims, subject: "admin", roles: ["admin", "service"] });
  const lines = ["", `Admin token (${TTL})`, `  ${admin}`];
  const [shop] = await orm.em.fork().execute<{ user_id: string; variant_id: string }[]>(
    `select u.id as user_id, v.id as variant_id from
       (select id from shop_user order by id limit 1) u, (select id from variant where stock > 0 order by id limit 1) v`,
  );
  if (!shop) return lines;
  const user = await sign(secret, { ...claims, subject: shop.user_id, roles: ["user"] });
  const header = `'authorization: Bearer ${user}'`;
  const body = JSON.stringify({
    requestId: `first-purchase`,
    userId: shop.user_id,
    lines: [{ variantId: shop.variant_id, quantity: 1 }],
  });
  return [
    ...lines,
    "",
    `User token (${TTL}) of ${shop.user_id}`,
    `  ${user}`,
    "",
    "Buy something (sent twice it is bought once; change the requestId to buy again)",
    `  curl ${http}/shop.v1.OrderService/Checkout -H 'content-type: application/json' -H ${header} -d '${body}'`,
    "",
    "See what sells best",
    `  npx buf curl --protocol grpc --http2-prior-knowledge -H ${header} -d '{}' http://${grpc}/shop.v1.RankingService/ListTopProducts`,
    "",
    "See where the money went",
    `  grpcurl -plaintext -H ${header} -d '{"user_id":"${shop.user_id}"}' ${grpc} shop.v1.BalanceService/ListLedgerEntries`,
  ];
}
