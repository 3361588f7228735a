import { defineEntity, p } from "@mikro-orm/core";

const schema = defineEntity({
  name: "Answer",
  tableName: "idempotency",
  properties: {
    scope: p.string().length(255).primary(),
    rpc: p.string().length(100).primary(),
    requestId: p.string().length(64).primary(),
    fingerprint: p.blob(),
    response: p.blob(),
    createTime: p.datetime(),
  },
  indexes: [{ properties: ["createTime"] }],
});

/** The answer to a write, kept so that sending the write again returns it and changes nothing. */
export class Answer extends schema.class {}
schema.setClass(Answer);
