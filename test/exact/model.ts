/** The rules of the shop once more, as plain as can be: one user after the other, everything in memory. */

export const MAX_BALANCE = 3_000;
export const PRICES = [100, 250];
export const COUPON = { total: 3, perUser: 2, amount: 150, least: 200 };

type Lines = readonly (readonly [variant: number, quantity: number])[];

/** What is asked for. `order`, `piece` are the keys of the steps that made them; -1 stands for one that never was. */
export type Action =
  | { kind: "charge"; user: number; amount: number }
  | { kind: "adjust"; variant: number; delta: number }
  | { kind: "add"; user: number; variant: number; quantity: number; reject: boolean }
  | { kind: "update"; user: number; variant: number; quantity: number }
  | { kind: "remove"; user: number; variant: number }
  | { kind: "clear"; user: number }
  | { kind: "claim"; user: number }
  | { kind: "place" | "placeCovered" | "checkout"; user: number; lines: Lines | "cart"; piece: number | null }
  | { kind: "pay" | "cancel" | "refund"; user: number; order: number }
  | { kind: "expire"; order: number };

/** Steps with the same key are the same request, sent again. */
export type Step = Readonly<{ key: number; action: Action }>;

export type OrderModel = {
  user: number;
  state: "PENDING_PAYMENT" | "PAID" | "CANCELLED" | "EXPIRED";
  lines: Lines;
  total: number;
  piece: number | null;
  expireTime: number;
};

export type Model = {
  balances: number[];
  stocks: number[];
  issued: number;
  /** By the key of the step that claimed it. */
  pieces: Record<number, { user: number; order: number | null }>;
  carts: [variant: number, quantity: number][][];
  /** By the key of the step that placed it. */
  orders: Record<number, OrderModel>;
  answered: number[];
};

export function emptyModel(stocks: readonly number[]): Model {
  return {
    balances: [0, 0],
    stocks: [...stocks],
    issued: 0,
    pieces: {},
    carts: [[], []],
    orders: {},
    answered: [],
  };
}

class Refusal extends Error {}

function refuseIf(condition: boolean, reason: string): void {
  if (condition) throw new Refusal(reason);
}

/** The refusal of a check that reserves nothing, and so reads a row without holding it. */
export function adviceOf({ kind }: Action): string | undefined {
  if (kind === "add" || kind === "update") return "INSUFFICIENT_STOCK";
  return kind === "placeCovered" ? "INSUFFICIENT_BALANCE" : undefined;
}

export type After = { model: Model; outcome: string };

/**
 * The state after a step, and what the caller hears: OK, REPLAY or a reason. When `unadvised`, checks that reserve
 * nothing are left out.
 */
export function after(model: Model, { key, action }: Step, now: number, unadvised = false): After {
  if (action.kind !== "expire" && model.answered.includes(key)) return { model, outcome: "REPLAY" };
  const next = structuredClone(model);
  try {
    apply(next, key, action, now, unadvised);
  } catch (error) {
    if (error instanceof Refusal) return { model, outcome: error.message };
    throw error;
  }
  if (action.kind !== "expire") next.answered.push(key);
  return { model: next, outcome: "OK" };
}

function apply(model: Model, key: number, action: Action, now: number, unadvised: boolean): void {
  switch (action.kind) {
    case "charge":
      refuseIf(at(model.balances, action.user) + action.amount > MAX_BALANCE, "BALANCE_LIMIT_EXCEEDED");
      model.balances[action.user] = at(model.balances, action.user) + action.amount;
      return;
    case "adjust":
      refuseIf(at(model.stocks, action.variant) + action.delta < 0, "INSUFFICIENT_STOCK");
      model.stocks[action.variant] = at(model.stocks, action.variant) + action.delta;
      return;
    case "claim":
      refuseIf(
        Object.values(model.pieces).filter(({ user }) => user === action.user).length >= COUPON.perUser,
        "COUPON_ALREADY_CLAIMED",
      );
      refuseIf(model.issued >= COUPON.total, "COUPON_SOLD_OUT");
      model.issued += 1;
      model.pieces[key] = { user: action.user, order: null };
      return;
    case "add":
    case "update":
    case "remove":
    case "clear":
      changeCart(model, action, unadvised);
      return;
    case "place":
    case "placeCovered":
    case "checkout":
      place(model, key, action, now, unadvised);
      return;
    case "pay":
      pay(model, action.order, now);
      return;
    case "cancel":
    case "refund":
      giveUp(model, action.order, action.kind);
      return;
    case "expire": {
      const order = model.orders[action.order];
      if (order?.state === "PENDING_PAYMENT" && now >= order.expireTime) leave(model, order, "EXPIRED");
    }
  }
}

function at<T>(list: readonly T[], index: number): T {
  return list[index] as T;
}

type CartAction = Extract<Action, { kind: "add" | "update" | "remove" | "clear" }>;

function changeCart(model: Model, action: CartAction, unadvised: boolean): void {
  const cart = at(model.carts, action.user);
  if (action.kind === "clear") {
    cart.length = 0;
    return;
  }
  const item = cart.find(([variant]) => variant === action.variant);
  if (action.kind === "add") {
    refuseIf(action.reject && item !== undefined, "CART_ITEM_EXISTS");
    const quantity = (item?.[1] ?? 0) + action.quantity;
    refuseIf(!unadvised && at(model.stocks, action.variant) < quantity, "INSUFFICIENT_STOCK");
    if (item) item[1] = quantity;
    else cart.push([action.variant, quantity]);
    return;
  }
  if (!item) throw new Refusal("CART_ITEM_NOT_FOUND");
  if (action.kind === "remove") {
    cart.splice(cart.indexOf(item), 1);
    return;
  }
  refuseIf(!unadvised && at(model.stocks, action.variant) < action.quantity, "INSUFFICIENT_STOCK");
  item[1] = action.quantity;
}

type Purchase = Extract<Action, { kind: "place" | "placeCovered" | "checkout" }>;

function place(model: Model, key: number, action: Purchase, now: number, unadvised: boolean): void {
  const { user, kind } = action;
  const lines = action.lines === "cart" ? at(model.carts, user).splice(0) : action.lines;
  refuseIf(lines.length === 0, "CART_EMPTY");
  for (const [variant, quantity] of lines) {
    refuseIf(at(model.stocks, variant) < quantity, "INSUFFICIENT_STOCK");
    model.stocks[variant] = at(model.stocks, variant) - quantity;
  }
  const subtotal = lines.reduce((sum, [variant, quantity]) => sum + at(PRICES, variant) * quantity, 0);
  const piece = action.piece === null ? null : model.pieces[action.piece];
  refuseIf(action.piece !== null && piece?.user !== user, "ISSUED_COUPON_NOT_FOUND");
  if (piece) {
    refuseIf(piece.order !== null || subtotal < COUPON.least, "COUPON_NOT_USABLE");
    piece.order = key;
  }
  const total = subtotal - (piece ? COUPON.amount : 0);
  refuseIf(kind === "placeCovered" && !unadvised && at(model.balances, user) < total, "INSUFFICIENT_BALANCE");
  const expireTime = now + 15 * 60_000;
  model.orders[key] = { user, state: "PENDING_PAYMENT", lines, total, piece: action.piece, expireTime };
  if (kind === "checkout") pay(model, key, now);
}

function pay(model: Model, key: number, now: number): void {
  const order = model.orders[key];
  if (!order) throw new Refusal("ORDER_NOT_FOUND");
  refuseIf(order.state !== "PENDING_PAYMENT" || now >= order.expireTime, "ORDER_NOT_PAYABLE");
  refuseIf(at(model.balances, order.user) < order.total, "INSUFFICIENT_BALANCE");
  model.balances[order.user] = at(model.balances, order.user) - order.total;
  order.state = "PAID";
}

function giveUp(model: Model, key: number, kind: "cancel" | "refund"): void {
  const order = model.orders[key];
  if (!order) throw new Refusal(kind === "cancel" ? "ORDER_NOT_FOUND" : "PAYMENT_NOT_FOUND");
  if (kind === "refund") refuseIf(order.state !== "PAID", "PAYMENT_NOT_REFUNDABLE");
  refuseIf(order.state !== "PENDING_PAYMENT" && order.state !== "PAID", "ORDER_NOT_CANCELLABLE");
  if (order.state === "PAID") model.balances[order.user] = at(model.balances, order.user) + order.total;
  leave(model, order, "CANCELLED");
}

function leave(model: Model, order: OrderModel, state: "CANCELLED" | "EXPIRED"): void {
  order.state = state;
  for (const [variant, quantity] of order.lines) model.stocks[variant] = at(model.stocks, variant) + quantity;
  const piece = order.piece === null ? undefined : model.pieces[order.piece];
  if (piece) piece.order = null;
}
