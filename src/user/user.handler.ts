import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromDate } from "@bufbuild/protobuf/wkt";
import type { ServiceImpl } from "@connectrpc/connect";
import { type UserSchema, UserService } from "../../gen/shop/v1/user_pb.ts";
import { write } from "../rpc/handler.ts";
import type { User } from "./user.entity.ts";
import type { Users } from "./user.service.ts";

export function userHandler(users: Users): ServiceImpl<typeof UserService> {
  return {
    createUser: write(
      UserService.method.createUser,
      (request, call) => users.create(call, request.name),
      (user) => ({ user: toUser(user) }),
    ),
    async getUser(request) {
      return { user: toUser(await users.get(request.userId)) };
    },
  };
}

function toUser(user: User): MessageInitShape<typeof UserSchema> {
  return { id: user.id, name: user.name, createTime: timestampFromDate(user.createTime) };
}
