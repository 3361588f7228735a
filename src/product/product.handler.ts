import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromDate } from "@bufbuild/protobuf/wkt";
import type { ServiceImpl } from "@connectrpc/connect";
import { type ProductSchema, ProductService, type VariantSchema } from "../../gen/shop/v1/product_pb.ts";
import { write } from "../rpc/handler.ts";
import type { Variant } from "./product.entity.ts";
import type { Products, ProductWithVariants } from "./product.service.ts";

export function productHandler(products: Products): ServiceImpl<typeof ProductService> {
  const { method } = ProductService;
  return {
    createProduct: write(
      method.createProduct,
      (request, call) => products.create(call, request),
      (product) => ({ product: toProduct(product) }),
    ),
    updateProduct: write(
      method.updateProduct,
      ({ productId, ...change }, call) => products.update(call, { ...change, id: productId }),
      (product) => ({ product: toProduct(product) }),
    ),
    adjustStock: write(
      method.adjustStock,
      (request, call) => products.adjustStock(call, request),
      (variant) => ({ variant: toVariant(variant) }),
    ),
    async getProduct(request) {
      return { product: toProduct(await products.get(request.productId)) };
    },
    async batchGetProducts(request) {
      return { products: (await products.batchGet(request.productIds)).map(toProduct) };
    },
    async listProducts(request) {
      const { items, nextPageToken } = await products.list(request);
      return { products: items.map(toProduct), nextPageToken };
    },
  };
}

function toVariant({ id, productId, name, price, stock }: Variant): MessageInitShape<typeof VariantSchema> {
  return { id, productId, name, price, stock };
}

function toProduct({ product, variants }: ProductWithVariants): MessageInitShape<typeof ProductSchema> {
  return {
    id: product.id,
    name: product.name,
    description: product.description,
    variants: variants.map(toVariant),
    version: BigInt(product.revision),
    createTime: timestampFromDate(product.createTime),
    updateTime: timestampFromDate(product.updateTime),
  };
}
