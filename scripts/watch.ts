/**
 * Shows what sells best, live.
 *
 *     npm run watch -- --token "$(npm run -s token -- --role service)"
 *     npm run watch -- --url https://shop.example --token ... --days 1 --limit 10 --by variant
 */
import { setTimeout as delay } from "node:timers/promises";
import { parseArgs } from "node:util";
import { timestampDate } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { createConnectTransport } from "@connectrpc/connect-node";
import { createLogUpdate } from "log-update";
import { RankingGroup, RankingService, type WatchTopProductsResponse } from "../gen/shop/v1/ranking_pb.ts";
import { command } from "./database.ts";

/** Characters of the longest bar, and of the longest name. */
const BAR = 40;
const NAME = 30;
/** How long to wait, in milliseconds, before a server that has gone is asked again. */
const PAUSE = 1_000;
/** Failures that pass by themselves. */
const PASSING = new Set([Code.Unavailable, Code.DeadlineExceeded, Code.Aborted, Code.ResourceExhausted]);

type Settings = { url: string; token: string; days: number; limit: number; group: RankingGroup };

function settings(): Settings {
  const { values } = parseArgs({
    options: {
      url: { type: "string", default: "http://127.0.0.1:8080" },
      token: { type: "string", default: process.env.TOKEN ?? "" },
      days: { type: "string", default: "3" },
      limit: { type: "string", default: "5" },
      by: { type: "string", default: "product" },
    },
  });
  const { url, token } = values;
  const group = { product: RankingGroup.PRODUCT, variant: RankingGroup.VARIANT }[values.by];
  if (group === undefined) throw new Error("--by must be product or variant");
  if (!["http:", "https:"].includes(URL.parse(url)?.protocol ?? ""))
    throw new Error("--url must be an http or https URL");
  if (token === "") throw new Error("--token is missing: `npm run -s token -- --role service` prints one");
  return { url, token, group, days: Number(values.days), limit: Number(values.limit) };
}

/** The name cut or filled to the column's width. */
const column = (name: string) => (name.length > NAME ? `${name.slice(0, NAME - 1)}…` : name.padEnd(NAME));

function draw({ days, url }: Settings, { products, asOf }: WatchTopProductsResponse): string {
  const most = Number(products[0]?.unitsSold ?? 1n);
  const lines = products.map(({ rank, productName, variantName, unitsSold }) => {
    const name = variantName ? `${productName} / ${variantName}` : productName;
    const bar = "█".repeat(Math.max(1, Math.round((BAR * Number(unitsSold)) / most))).padEnd(BAR);
    return `${String(rank).padStart(3)}  ${column(name)}  ${bar}  ${unitsSold}`;
  });
  const time = asOf ? timestampDate(asOf).toLocaleTimeString() : "";
  const title = `Best sellers of the last ${days === 1 ? "day" : `${days} days`} at ${url}, as of ${time}`;
  return [title, "", ...(lines.length > 0 ? lines : ["     nothing was sold yet"])].join("\n");
}

await command(async () => {
  const given = settings();
  const { url, token, days, limit, group } = given;
  const client = createClient(RankingService, createConnectTransport({ baseUrl: url, httpVersion: "1.1" }));
  // Redrawn in place on a terminal; elsewhere one after the other.
  const screen = process.stdout.isTTY ? createLogUpdate(process.stdout) : console.log;
  let shown = "";
  for (;;) {
    try {
      const headers = { authorization: `Bearer ${token}` };
      for await (const top of client.watchTopProducts({ days, limit, group }, { headers })) {
        shown = draw(given, top);
        screen(shown);
      }
    } catch (error) {
      const { code, rawMessage } = ConnectError.from(error);
      if (!PASSING.has(code)) throw new Error(rawMessage);
      screen(`${shown}\n\n${rawMessage}; trying again`);
    }
    await delay(PAUSE);
  }
});
