import { expect, test } from "vitest";
import { entities } from "../src/app.ts";
import { bannerOf } from "../src/banner.ts";
import { readConfig } from "../src/config.ts";
import { createOrm } from "../src/db/orm.ts";
import { createDatabase } from "./support/database.ts";

test.each([
  ["127.0.0.1", "127.0.0.1:50051", "http://127.0.0.1:8080"],
  ["::", "[::]:50051", "http://[::]:8080"],
])("on %s, addresses can be pasted, and amounts have a currency", async (host, grpc, http) => {
  const orm = await createOrm({ url: await createDatabase(), poolSize: 1, entities });
  const config = readConfig({ HOST: host, CURRENCY: "USD" });
  const banner = await bannerOf(config, config, orm, undefined);
  expect(banner.split("\n").map((line) => line.trim())).toEqual([
    "",
    "Doorbuster is ready",
    `gRPC     ${grpc}`,
    `Connect  ${http}`,
    "Amounts  minor units of USD",
    "Tokens   npm run -s token -- --role service, with the same JWT_SECRET",
    "",
  ]);
  await orm.close();
});
