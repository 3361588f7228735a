/** Events as callers get them, through both doors of a process other than the one in which they happen. */
import { timestampDate } from "@bufbuild/protobuf/wkt";
import { expect, onTestFinished, test } from "vitest";
import { type Event, EventService } from "../../gen/shop/v1/event_pb.ts";
import type { Order } from "../../gen/shop/v1/order_pb.ts";
import { GrpcClient } from "../exact/clients.ts";
import { clientsOf, fresh, newUser, newVariant, serverOn, tokenOf } from "../exact/shop.ts";
import { connectClient, type DoorClient, grpcClient } from "../rpc/clients.ts";
import { createDatabase } from "../support/database.ts";

const { streamEvents } = EventService.method;

/** A caller that follows events from a position on. */
function follow(door: DoorClient, token: string, afterPosition: string, types: string[]) {
  const pages = door.stream(streamEvents, { afterPosition, types }, { token })[Symbol.asyncIterator]();
  onTestFinished(async () => void (await pages.return?.()));
  return {
    leave: async () => void (await pages.return?.()),
    /** The next events, at least so many, and the position behind them. */
    async next(count: number): Promise<{ events: Event[]; position: string }> {
      const events: Event[] = [];
      let position = afterPosition;
      while (events.length < count) {
        const { value, done } = await pages.next();
        if (done) break;
        events.push(...value.events);
        ({ position } = value);
      }
      return { events, position };
    },
  };
}

test("a purchase on one process is told on another one: what, in order, and from a position on each once", async () => {
  const url = await createDatabase();
  const [selling, showing] = [await serverOn(url), await serverOn(url)];
  const token = await tokenOf();
  const seller = new GrpcClient(selling, token);
  const doors = [grpcClient(showing.grpcPort), connectClient(showing.httpPort)];
  onTestFinished(async () => {
    for (const client of [seller, ...doors]) client.close();
    await Promise.all([selling.stop(), showing.stop()]);
  });
  const shop = clientsOf(seller.transport);
  const variantId = await newVariant(shop, {}, 10n, 100);
  const userId = await newUser(shop, 1_000n);
  const buy = async (quantity: number): Promise<Order> => {
    const lines = [{ variantId, quantity }];
    return (await shop.orders.checkout({ requestId: fresh(), userId, lines })).order as Order;
  };
  const idsOf = (events: readonly { aggregateId: string }[]) => events.map(({ aggregateId }) => aggregateId);

  const first = doors.map((door) => follow(door, token, "", ["order.paid"]));
  const one = await buy(1);
  const told = await Promise.all(first.map((stream) => stream.next(1)));
  const two = await buy(2);
  const behind = await Promise.all(first.map((stream) => stream.next(1)));
  for (const [index, { events }] of told.entries()) {
    expect([idsOf(events), idsOf(behind[index]?.events ?? [])]).toEqual([[one.id], [two.id]]);
    const [event] = events;
    expect(event).toMatchObject({ type: "order.paid", aggregateType: "order", aggregateId: one.id });
    expect(event?.id).toMatch(/^[0-9a-f]{8}-[0-9a-f]{4}-7/);
    expect(event?.createTime && timestampDate(event.createTime)).toEqual(
      one.updateTime && timestampDate(one.updateTime),
    );
    expect(JSON.parse(event?.payload ?? "")).toMatchObject({
      order_id: one.id,
      user_id: userId,
      state: "PAID",
      total: "10",
      lines: [{ variant_id: variantId, quantity: 1, price: "10" }],
    });
  }
  for (const stream of first) await stream.leave();

  const [three, four] = [await buy(3), await buy(4)];
  // From the middle of what it has got, and from its end.
  const again = doors.map((door, index) => follow(door, token, told[index]?.position ?? "", ["order.paid"]));
  for (const stream of again) expect(idsOf((await stream.next(3)).events)).toEqual([two.id, three.id, four.id]);
  const last = doors.map((door, index) => follow(door, token, behind[index]?.position ?? "", ["order.paid"]));
  for (const stream of last) expect(idsOf((await stream.next(2)).events)).toEqual([three.id, four.id]);
  const five = await buy(5);
  for (const stream of [...again, ...last]) expect(idsOf((await stream.next(1)).events)).toEqual([five.id]);

  // Of all types.
  const all = doors.map((door, index) => follow(door, token, behind[index]?.position ?? "", []));
  for (const stream of all) {
    const { events } = await stream.next(9);
    const types = ["order.placed", "payment.completed", "order.paid"];
    expect(events.map(({ type }) => type)).toEqual([...types, ...types, ...types]);
    const orders = events.filter(({ aggregateType }) => aggregateType === "order");
    expect(idsOf(orders)).toEqual([three, three, four, four, five, five].map(({ id }) => id));
  }
});
