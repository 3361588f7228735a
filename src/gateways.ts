/** The payment gateway that is set up. */
import { join } from "node:path";
import type { Logger } from "pino";
import type { Config } from "./config.ts";
import type { Database } from "./db/database.ts";
import { External, type Trouble } from "./payment/external.ts";
import type { PaymentGateway } from "./payment/gateway.ts";
import { SandboxGateway } from "./payment/sandbox.ts";
import { storedPayment } from "./payment/stored.ts";
import type { Webhooks } from "./rpc/webhook.ts";

const STRIPE_WEBHOOK = "/webhooks/stripe";

export type Gateway = Readonly<{
  external: External;
  /** Where the gateway may tell something by itself. */
  webhooks: Webhooks;
}>;

/** Which gateway it is, apart from others of its kind that know nothing of its payments: Stripe keeps test and live apart. */
export function gatewayNameOf({ paymentGateway, stripe }: Config): string {
  return stripe ? `${paymentGateway} ${/_live_/.test(stripe.secretKey) ? "live" : "test"}` : paymentGateway;
}

/** Payments through the gateway that is set up; undefined when none is. */
export async function openGateway(config: Config, db: Database, log: Logger): Promise<Gateway | undefined> {
  const { paymentGateway, paymentTimeoutMs: timeoutMs, currency, stripe, dataDir } = config;
  if (paymentGateway === "off") return undefined;
  const name = gatewayNameOf(config);
  const observer = {
    unsettled: (trouble: Trouble) => log.error(trouble, "the payment gateway does not settle this; it is asked again"),
  };
  const payingThrough = (gateway: PaymentGateway) => new External(db, { gateway, name, currency, timeoutMs, observer });
  if (!stripe) {
    const external = payingThrough(new SandboxGateway(join(dataDir, "sandbox-gateway")));
    return { external, webhooks: new Map() };
  }
  // The library is large, and most who start the service do without it.
  const { StripeGateway } = await import("./payment/stripe.ts");
  const { stripeWebhook } = await import("./payment/stripe-webhook.ts");
  const { secretKey, webhookSecret: secret, apiUrl } = stripe;
  const stored = (id: string) => storedPayment(db, id);
  const failed = (failure: object) => log.warn(failure, "a request to Stripe failed");
  const external = payingThrough(new StripeGateway({ secretKey, apiUrl, currency, stored, failed }));
  if (!secret) return { external, webhooks: new Map() };
  const webhook = stripeWebhook({ secret, currency, stored, hear: (id, answer) => external.hear(id, answer) });
  return { external, webhooks: new Map([[STRIPE_WEBHOOK, webhook]]) };
}
