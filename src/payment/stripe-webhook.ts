/** What Stripe tells by itself. It only makes things faster: without it the gateway is asked, and nothing is lost. */
import type { IncomingHttpHeaders } from "node:http";
import Stripe from "stripe";
import type { GatewayAnswer } from "./gateway.ts";
import type { StoredPayment } from "./stored.ts";

/** How old a signature may be, in seconds: who has overheard an event can't send it again later. */
const TOLERANCE = 300;

const UUID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/;

export type StripeWebhookOptions = Readonly<{
  /** With which Stripe signs. */
  secret: string;
  /** ISO 4217, of every amount. */
  currency: string;
  /** What is stored of the payment with that id. */
  stored: (paymentId: string) => Promise<StoredPayment | undefined>;
  /** Told what Stripe says of a payment. Telling it again must change nothing. */
  hear: (paymentId: string, answer: GatewayAnswer) => Promise<void>;
}>;

/**
 * Takes an event as it was sent, and answers the HTTP status: 400 for what Stripe has not signed, or not lately; 200 for
 * everything else, be it ours or not.
 *
 * @throws DomainError DATABASE_UNAVAILABLE, and whatever else keeps the event from being heard
 */
export function stripeWebhook({ secret, currency, stored, hear }: StripeWebhookOptions) {
  async function isPaid(paymentId: string, intent: Stripe.PaymentIntent): Promise<boolean> {
    const payment = await stored(paymentId);
    return (
      payment !== undefined &&
      BigInt(intent.amount_received) === payment.amount &&
      intent.currency === currency.toLowerCase()
    );
  }

  return async (body: Buffer, headers: IncomingHttpHeaders): Promise<number> => {
    const event = verified(body, headers["stripe-signature"], secret);
    if (!event) return 400;
    const paymentId = paymentOf(event);
    if (paymentId === undefined) return 200;
    switch (event.type) {
      case "payment_intent.succeeded": {
        const intent = event.data.object;
        // An intent that says it is ours and holds another amount is none that this service has made.
        if (await isPaid(paymentId, intent)) await hear(paymentId, { outcome: "approved", reference: intent.id });
        return 200;
      }
      // Events come in any order, so that these prove nothing: Stripe is asked.
      case "payment_intent.canceled":
      case "payment_intent.payment_failed":
      case "charge.refunded":
      case "refund.created":
      case "refund.updated":
      case "refund.failed":
        await hear(paymentId, { outcome: "unknown" });
        return 200;
      default:
        return 200;
    }
  };
}

function verified(body: Buffer, signature: unknown, secret: string): Stripe.Event | undefined {
  if (typeof signature !== "string") return undefined;
  try {
    return Stripe.webhooks.constructEvent(body, signature, secret, TOLERANCE);
  } catch {
    // A wrong signature, an old one, or no JSON. The error holds the body, and is not for the log.
    return undefined;
  }
}

/** The payment that an event is about by what this service has noted at Stripe; undefined when it noted nothing. */
function paymentOf(event: Stripe.Event): string | undefined {
  const { metadata } = event.data.object as { metadata?: Stripe.Metadata | null };
  const id = metadata?.payment_id;
  return id !== undefined && UUID.test(id) ? id : undefined;
}
