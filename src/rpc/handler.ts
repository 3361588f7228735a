import { hash } from "node:crypto";
import {
  create,
  type DescMessage,
  type DescMethodUnary,
  fromBinary,
  type Message,
  type MessageInitShape,
  type MessageShape,
} from "@bufbuild/protobuf";
import type { HandlerContext } from "@connectrpc/connect";
import { Replayed, type Write } from "../db/command.ts";
import { callerOf } from "./call.ts";
import { encode } from "./encode.ts";

/** Answers whose bytes are there already, because they were stored or sent before: the gRPC door encodes nothing then. */
const encoded = new WeakMap<Message, Uint8Array>();

/** The answer as bytes, made now unless it was made before. */
export function encodeAnswer(output: DescMessage, answer: Message): Uint8Array {
  return encoded.get(answer) ?? encode(output, answer);
}

/** A message of a stream as bytes: one that is sent to many is encoded once. It must not change any more. */
export function encodeStreamed(output: DescMessage, message: Message): Uint8Array {
  const known = encoded.get(message);
  if (known) return known;
  const bytes = encode(output, message);
  encoded.set(message, bytes);
  return bytes;
}

function remember<M extends Message>({ answer, bytes }: { answer: M; bytes: Uint8Array }): M {
  encoded.set(answer, bytes);
  return answer;
}

/** A handler of a unary RPC that always answers a whole message. */
export type UnaryHandler<I extends DescMessage, O extends DescMessage> = (
  request: MessageShape<I>,
  context: HandlerContext,
) => Promise<MessageShape<O>>;

/**
 * The handler of a write: gives the verb what makes the call the same call when it is sent again, and answers with the
 * stored response when it was. `respond` turns the verb's result into the response; it may run more than once, since the
 * verb's decision may, and only in the end is it known which result stands.
 */
export function write<I extends DescMessage, O extends DescMessage, R>(
  method: DescMethodUnary<I, O>,
  run: (request: MessageShape<I>, call: Write) => Promise<R>,
  respond: (result: NoInfer<R>) => MessageInitShape<O>,
): UnaryHandler<I, O> {
  const { input, output } = method;
  const rpc = `${method.parent.typeName}/${method.name}`;
  if (!input.fields.some((field) => field.localName === "requestId")) {
    throw new Error(`${rpc} is not a write: its request has no request_id`);
  }
  return async (request, context) => {
    let last: { result: unknown; answer: MessageShape<O>; bytes: Uint8Array } | undefined;
    const answerOf = (result: unknown) => {
      if (last && last.result === result) return last;
      const answer = create(output, respond(result as R));
      last = { result, answer, bytes: encode(output, answer) };
      return last;
    };
    const call: Write = {
      scope: callerOf(context).subject,
      rpc,
      requestId: (request as unknown as { requestId: string }).requestId,
      fingerprint: hash("sha256", encode(input, request), "buffer"),
      signal: context.signal,
      encode: (result) => answerOf(result).bytes,
    };
    try {
      return remember(answerOf(await run(request, call)));
    } catch (error) {
      if (!(error instanceof Replayed)) throw error;
      context.responseHeader.set("idempotent-replay", "true");
      return remember({ answer: fromBinary(output, error.response), bytes: error.response });
    }
  };
}
