/** The port to those who move money outside: what the service needs of a payment gateway, and nothing of any of them. */

/** `error` is for the log. */
export type Unknown = Readonly<{ outcome: "unknown"; error?: string }>;

/**
 * What a gateway says of a key. `unknown` is an answer too: an error, a silence, a charge that is still being worked on.
 * Only asking again tells then.
 */
export type GatewayAnswer = Readonly<
  { outcome: "approved"; reference: string } | { outcome: "declined"; reference: string | null; code: string } | Unknown
>;

/**
 * Whether the money is on its way back. Without a yes it is asked for again with the same key, also when it was `refused`:
 * what stands in the way is for people to clear up, and `code` tells them.
 */
export type RefundAnswer = Readonly<
  { outcome: "refunded"; reference: string } | { outcome: "refused"; code: string } | Unknown
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

/** The answer within `timeoutMs`; `unknown` when there is none, or an error, or `stop` fires. */
export async function answerWithin<A extends { outcome: string }>(
  timeoutMs: number,
  ask: (signal: AbortSignal) => Promise<A>,
  stop?: AbortSignal,
): Promise<A | Unknown> {
  const silence = { outcome: "unknown", error: `no answer within ${timeoutMs} ms` } as const;
  const over = Promise.withResolvers<Unknown>();
  const giveUp = new AbortController();
  const end = () => {
    giveUp.abort();
    over.resolve(silence);
  };
  const timer = setTimeout(end, timeoutMs);
  stop?.addEventListener("abort", end, { once: true });
  try {
    return stop?.aborted ? silence : await Promise.race([ask(giveUp.signal), over.promise]);
  } catch (error) {
    return { outcome: "unknown", error: error instanceof Error ? error.message : String(error) };
  } finally {
    clearTimeout(timer);
    stop?.removeEventListener("abort", end);
  }
}
