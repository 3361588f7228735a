/** What the MikroORM command line works with: `DATABASE_URL=postgres://... npm run migration -- --name add-something`. */
import { defineConfig } from "@mikro-orm/postgresql";
import { entities } from "./src/app.ts";
import { ormConfig } from "./src/db/orm.ts";

const url = process.env.DATABASE_URL;
if (!url) throw new Error("DATABASE_URL names the database that the entities are compared with: an empty one will do");

export default defineConfig({ ...ormConfig({ url, poolSize: 2, entities }) });
