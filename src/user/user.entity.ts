import { defineEntity, p } from "@mikro-orm/core";
import { DomainError } from "../error.ts";

const schema = defineEntity({
  name: "User",
  tableName: "shop_user",
  properties: {
    id: p.uuid().primary(),
    name: p.string().length(100),
    createTime: p.datetime(),
  },
});

/** Somebody who can buy. */
export class User extends schema.class {
  static notFound(key: { id: string }): DomainError {
    return new DomainError("USER_NOT_FOUND", "there is no such user", { user_id: key.id });
  }

  static register(id: string, name: string, now: Date): User {
    return Object.assign(new User(), { id, name, createTime: now });
  }
}
schema.setClass(User);
