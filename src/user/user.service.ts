import { randomUUIDv7 } from "node:crypto";
import { Wallet } from "../balance/balance.entity.ts";
import type { Write } from "../db/command.ts";
import type { Database } from "../db/database.ts";
import { User } from "./user.entity.ts";

/** Registering and finding buyers. */
export class Users {
  readonly #db: Database;

  constructor(db: Database) {
    this.#db = db;
  }

  /** Registers a user and opens an empty wallet. */
  create(call: Write, name: string): Promise<User> {
    return this.#db.write(call, {
      touches: [],
      decide: (tx) => {
        const user = User.register(randomUUIDv7(), name, tx.now);
        tx.add(user);
        tx.add(Wallet.open(user.id));
        return user;
      },
    });
  }

  /** @throws DomainError USER_NOT_FOUND */
  async get(id: string): Promise<User> {
    const user = await this.#db.find(User, { id });
    if (!user) throw User.notFound({ id });
    return user;
  }
}
