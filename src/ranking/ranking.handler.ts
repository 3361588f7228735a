import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromDate } from "@bufbuild/protobuf/wkt";
import type { ServiceImpl } from "@connectrpc/connect";
import {
  type ListTopProductsRequest,
  type ListTopProductsResponseSchema,
  RankingGroup,
  type RankingService,
  type WatchTopProductsResponse,
  WatchTopProductsResponseSchema,
} from "../../gen/shop/v1/ranking_pb.ts";
import type { Ranking } from "./ranking.service.ts";
import type { Top, TopQuery } from "./top.ts";
import type { RankingWatch } from "./watch.ts";

const DEFAULT_DAYS = 3;
const DEFAULT_LIMIT = 5;

export function rankingHandler(ranking: Ranking, watching: RankingWatch): ServiceImpl<typeof RankingService> {
  return {
    async listTopProducts(request) {
      return toResponse(await ranking.top(queryOf(request)));
    },
    async *watchTopProducts(request, context) {
      for await (const top of watching.watch(queryOf(request), context.signal)) yield toShared(top);
    },
  };
}

function queryOf({ days, limit, group }: Pick<ListTopProductsRequest, "days" | "limit" | "group">): TopQuery {
  const byVariant = group === RankingGroup.VARIANT;
  return { days: days ?? DEFAULT_DAYS, limit: limit ?? DEFAULT_LIMIT, byVariant };
}

function toResponse({
  products,
  asOf,
}: Top): Omit<MessageInitShape<typeof ListTopProductsResponseSchema>, "$typeName"> {
  return {
    products: products.map((product, index) => ({ ...product, rank: index + 1 })),
    asOf: timestampFromDate(asOf),
  };
}

const shared = new WeakMap<Top, WatchTopProductsResponse>();

/** The message of an answer that many get: one for all of them. */
function toShared(top: Top): WatchTopProductsResponse {
  const response = shared.get(top) ?? create(WatchTopProductsResponseSchema, toResponse(top));
  shared.set(top, response);
  return response;
}
