import { create, toBinary } from "@bufbuild/protobuf";
import { anyPack, durationFromMs } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError } from "@connectrpc/connect";
import { BadRequestSchema, ErrorInfoSchema, RetryInfoSchema } from "../../gen/google/rpc/error_details_pb.ts";
import { StatusSchema } from "../../gen/google/rpc/status_pb.ts";
import { DomainError, type Reason } from "../error.ts";

/** The gRPC code of each reason: the one table that both front doors answer by. */
const codes = {
  ARGUMENT_INVALID: Code.InvalidArgument,
  PAGE_TOKEN_INVALID: Code.InvalidArgument,
  POSITION_INVALID: Code.InvalidArgument,
  USER_NOT_FOUND: Code.NotFound,
  PRODUCT_NOT_FOUND: Code.NotFound,
  VARIANT_NOT_FOUND: Code.NotFound,
  CART_ITEM_NOT_FOUND: Code.NotFound,
  COUPON_NOT_FOUND: Code.NotFound,
  ISSUED_COUPON_NOT_FOUND: Code.NotFound,
  ORDER_NOT_FOUND: Code.NotFound,
  PAYMENT_NOT_FOUND: Code.NotFound,
  CART_ITEM_EXISTS: Code.AlreadyExists,
  COUPON_ALREADY_CLAIMED: Code.AlreadyExists,
  REQUEST_ID_REUSED: Code.AlreadyExists,
  CART_EMPTY: Code.FailedPrecondition,
  CART_FULL: Code.FailedPrecondition,
  INSUFFICIENT_STOCK: Code.FailedPrecondition,
  INSUFFICIENT_BALANCE: Code.FailedPrecondition,
  BALANCE_LIMIT_EXCEEDED: Code.FailedPrecondition,
  COUPON_NOT_USABLE: Code.FailedPrecondition,
  ORDER_NOT_PAYABLE: Code.FailedPrecondition,
  ORDER_NOT_CANCELLABLE: Code.FailedPrecondition,
  PAYMENT_NOT_REFUNDABLE: Code.FailedPrecondition,
  PAYMENT_IN_PROGRESS: Code.FailedPrecondition,
  TOTAL_CHANGED: Code.FailedPrecondition,
  PAYMENT_DECLINED: Code.FailedPrecondition,
  POSITION_EXPIRED: Code.FailedPrecondition,
  COUPON_SOLD_OUT: Code.ResourceExhausted,
  OVERLOADED: Code.ResourceExhausted,
  RATE_LIMITED: Code.ResourceExhausted,
  VERSION_MISMATCH: Code.Aborted,
  CONFLICT: Code.Aborted,
  TOKEN_MISSING: Code.Unauthenticated,
  TOKEN_INVALID: Code.Unauthenticated,
  NOT_YOURS: Code.PermissionDenied,
  ROLE_REQUIRED: Code.PermissionDenied,
  METHOD_NOT_SERVED: Code.Unimplemented,
  CANCELLED: Code.Canceled,
  DEADLINE_EXCEEDED: Code.DeadlineExceeded,
  MESSAGE_TOO_LARGE: Code.ResourceExhausted,
  DATABASE_UNAVAILABLE: Code.Unavailable,
  ISSUER_UNAVAILABLE: Code.Unavailable,
  SHUTTING_DOWN: Code.Unavailable,
  INTERNAL: Code.Internal,
} satisfies Record<Reason, Code>;

/** What the transport libraries mean by the codes that they raise themselves. A code that is not here is a failure of ours. */
const libraryReasons: Partial<Record<Code, Reason>> = {
  [Code.Canceled]: "CANCELLED",
  [Code.Aborted]: "CANCELLED",
  [Code.InvalidArgument]: "ARGUMENT_INVALID",
  [Code.DeadlineExceeded]: "DEADLINE_EXCEEDED",
  [Code.ResourceExhausted]: "MESSAGE_TOO_LARGE",
  [Code.Unimplemented]: "METHOD_NOT_SERVED",
};

const codeNames = Object.fromEntries(
  Object.entries(Code)
    .filter(([name]) => Number.isNaN(Number(name)))
    .map(([name, code]) => [code, name.replace(/(?<=[a-z])(?=[A-Z])/g, "_").toUpperCase()]),
);

/** The name of a code as gRPC spells it: `NOT_FOUND`. */
export function codeName(code: Code): string {
  return code === Code.Canceled ? "CANCELLED" : String(codeNames[code]);
}

/** The gRPC code that a reason is answered with. */
export function codeOf(reason: Reason): Code {
  return codes[reason];
}

/**
 * Any failure as a refusal with a reason. What is neither a DomainError nor raised by a transport library on account of
 * the caller becomes INTERNAL and keeps the failure as its cause, for the log.
 */
export function refusalOf(error: unknown): DomainError {
  if (error instanceof DomainError) return error;
  const reason = error instanceof ConnectError ? libraryReasons[error.code] : undefined;
  if (reason) return new DomainError(reason, (error as ConnectError).rawMessage);
  return new DomainError("INTERNAL", "internal error", {}, { cause: error });
}

/** Of refusals that are one object for everybody, as under an overload: making an error costs more than all else of those. */
const shared = new WeakMap<DomainError, ConnectError>();

/** The same error for the same refusal. It must not be changed. */
export function toSharedError(refusal: DomainError, requestId: string): ConnectError {
  // It tells the request id.
  if (refusal.reason === "INTERNAL") return toConnectError(refusal, requestId);
  const error = shared.get(refusal) ?? toConnectError(refusal, requestId);
  shared.set(refusal, error);
  return error;
}

/**
 * The error that leaves the house: the code of the reason, google.rpc.ErrorInfo, BadRequest when fields are wrong,
 * RetryInfo when trying again helps. INTERNAL tells the request id and nothing else.
 */
export function toConnectError(error: unknown, requestId: string): ConnectError {
  const refusal = refusalOf(error);
  const internal = refusal.reason === "INTERNAL";
  const metadata = internal ? { request_id: requestId } : refusal.metadata;
  const details: ConnectError["details"] = [
    { desc: ErrorInfoSchema, value: { domain: "shop.v1", reason: refusal.reason, metadata } },
  ];
  if (refusal.violations.length > 0) {
    details.push({ desc: BadRequestSchema, value: { fieldViolations: refusal.violations } });
  }
  if (refusal.retryAfterMs !== undefined) {
    details.push({ desc: RetryInfoSchema, value: { retryDelay: durationFromMs(refusal.retryAfterMs) } });
  }
  const connectError = new ConnectError(internal ? "internal error" : refusal.message, codes[refusal.reason]);
  connectError.details = details;
  return connectError;
}

/** Whether an error is one of ours that has its reason already, and not one that a transport library raised. */
export function isMapped(error: unknown): error is ConnectError {
  return error instanceof ConnectError && error.details.length > 0;
}

/** The error as bytes of google.rpc.Status, the value of `grpc-status-details-bin`. */
export function encodeStatus(error: ConnectError): Uint8Array {
  const details = error.details.flatMap((detail) =>
    "desc" in detail ? [anyPack(detail.desc, create(detail.desc, detail.value))] : [],
  );
  return toBinary(StatusSchema, create(StatusSchema, { code: error.code, message: error.rawMessage, details }));
}
