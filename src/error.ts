/**
 * Every reason for which the service refuses a call: the closed list that callers program against. `rpc/error-map.ts`
 * gives each its gRPC code.
 */
export const reasons = [
  "ARGUMENT_INVALID",
  "PAGE_TOKEN_INVALID",
  "POSITION_INVALID",
  "USER_NOT_FOUND",
  "PRODUCT_NOT_FOUND",
  "VARIANT_NOT_FOUND",
  "CART_ITEM_NOT_FOUND",
  "COUPON_NOT_FOUND",
  "ISSUED_COUPON_NOT_FOUND",
  "ORDER_NOT_FOUND",
  "PAYMENT_NOT_FOUND",
  "CART_ITEM_EXISTS",
  "COUPON_ALREADY_CLAIMED",
  "REQUEST_ID_REUSED",
  "CART_EMPTY",
  "CART_FULL",
  "INSUFFICIENT_STOCK",
  "INSUFFICIENT_BALANCE",
  "BALANCE_LIMIT_EXCEEDED",
  "COUPON_NOT_USABLE",
  "ORDER_NOT_PAYABLE",
  "ORDER_NOT_CANCELLABLE",
  "PAYMENT_NOT_REFUNDABLE",
  "PAYMENT_IN_PROGRESS",
  "TOTAL_CHANGED",
  "PAYMENT_DECLINED",
  "POSITION_EXPIRED",
  "COUPON_SOLD_OUT",
  "OVERLOADED",
  "RATE_LIMITED",
  "VERSION_MISMATCH",
  "CONFLICT",
  "TOKEN_MISSING",
  "TOKEN_INVALID",
  "NOT_YOURS",
  "ROLE_REQUIRED",
  "METHOD_NOT_SERVED",
  "CANCELLED",
  "DEADLINE_EXCEEDED",
  "MESSAGE_TOO_LARGE",
  "DATABASE_UNAVAILABLE",
  "ISSUER_UNAVAILABLE",
  "SHUTTING_DOWN",
  "INTERNAL",
] as const;

export type Reason = (typeof reasons)[number];

/** Facts about the refusal for programs, with snake_case keys: `{ available: "3", required: "5" }`. */
export type Metadata = Readonly<Record<string, string>>;

/** A field of the request that breaks a rule, named by its path in the contract: `lines[2].quantity`. */
export type FieldViolation = Readonly<{ field: string; description: string }>;

export type DomainErrorOptions = {
  /** Which fields are wrong; for ARGUMENT_INVALID. */
  violations?: readonly FieldViolation[];
  /** Set where trying again helps: how long to wait before, in milliseconds. */
  retryAfterMs?: number;
  /** For the log only; it never reaches the caller. */
  cause?: unknown;
};

/** A refusal that the caller may see: its message and metadata are part of the contract. */
export class DomainError extends Error {
  override readonly name = "DomainError";
  readonly reason: Reason;
  readonly metadata: Metadata;
  readonly violations: readonly FieldViolation[];
  readonly retryAfterMs: number | undefined;

  constructor(reason: Reason, message: string, metadata: Metadata = {}, options: DomainErrorOptions = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.reason = reason;
    this.metadata = metadata;
    this.violations = options.violations ?? [];
    this.retryAfterMs = options.retryAfterMs;
  }
}
