/** The port to those who move money outside: what the service needs of a payment gateway, and nothing of any of them. */

/**
 * What a gateway says of a key. `unknown` is an answer too: an error, a silence, a charge that is still being worked on.
 * Only asking again tells then.
 */
export type GatewayAnswer = Readonly<
  | { outcome: "approved"; reference: string }
  | { outcome: "declined"; reference: string | null; code: string }
  | { outcome: "unknown" }
>;

/**
 * Whether the money is on its way back. Anything but a yes is asked for again with the same key; `refused` is a no that the
 * gateway gives a reason for.
 */
export type RefundAnswer = Readonly<
  { outcome: "refunded"; reference: string } | { outcome: "refused"; code: string } | { outcome: "unknown" }
>;

/** Money to take: `amount` in minor units of `currency`; `token` stands for the card, and was made by the gateway's own form. */
export type Charge = Readonly<{ key: string; amount: bigint; currency: string; token: string }>;

/** A gateway. What it throws counts as `unknown`. `signal` fires when nobody waits for the answer any more. */
export interface PaymentGateway {
  /** Takes the money. The same key is charged once, however often it is sent. */
  charge(charge: Charge, signal: AbortSignal): Promise<GatewayAnswer>;
  /**
   * What became of a key. One that the gateway has never heard of is closed by the question: it answers `declined`, and
   * a charge that arrives with that key later takes no money.
   */
  retrieve(key: string, signal: AbortSignal): Promise<GatewayAnswer>;
  /** Gives `amount` of the charge `key` back, once for each `refundKey`. */
  refund(refund: { refundKey: string; key: string; amount: bigint }, signal: AbortSignal): Promise<RefundAnswer>;
}

/** The answer within `timeoutMs`; `unknown` when there is none, or an error. */
export async function answerWithin<A extends { outcome: string }>(
  timeoutMs: number,
  ask: (signal: AbortSignal) => Promise<A>,
): Promise<A | { outcome: "unknown" }> {
  const unknown = { outcome: "unknown" } as const;
  const over = Promise.withResolvers<typeof unknown>();
  const giveUp = new AbortController();
  const timer = setTimeout(() => {
    giveUp.abort();
    over.resolve(unknown);
  }, timeoutMs);
  try {
    return await Promise.race([ask(giveUp.signal), over.promise]);
  } catch {
    return unknown;
  } finally {
    clearTimeout(timer);
  }
}
