import type { Database } from "../db/database.ts";
import { Payment, PaymentEvent } from "./payment.entity.ts";

/** What is stored of a payment, for a gateway that needs more than the key that it is asked by. */
export type StoredPayment = Readonly<{
  /** In minor units. */
  amount: bigint;
  /** What the gateway calls the charge; undefined until it has said. */
  reference: string | undefined;
}>;

/** The payment with that id; undefined when there is none. @throws DomainError DATABASE_UNAVAILABLE */
export async function storedPayment(db: Database, id: string): Promise<StoredPayment | undefined> {
  const payment = await db.find(Payment, { id });
  if (!payment) return undefined;
  const events = await db.list(PaymentEvent, { orderId: payment.orderId, paymentId: id });
  // Of the charge: refunds have references as well, and so may a charge that was declined.
  const charge = events.find(({ amount }) => amount > 0n);
  return { amount: payment.amount, reference: charge?.gatewayReference ?? undefined };
}
