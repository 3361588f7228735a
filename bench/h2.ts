/**
 * A connection that makes gRPC calls and does nothing else, since the load generator shares the machine with what it
 * measures. Calls are written as bytes made in advance; of the answer only the status is read. With 64 callers a call
 * costs 5 us of processor time against the echo server, and 10 to 18 us against the service.
 */
import { once } from "node:events";
import { connect, type Socket } from "node:net";
import { grpcStatus } from "./hpack.ts";

const DATA = 0;
const HEADERS = 1;
const RST_STREAM = 3;
const SETTINGS = 4;
const PING = 6;
const GOAWAY = 7;
const WINDOW_UPDATE = 8;
const ACK = 1;
const END_STREAM = 1;
const END_HEADERS = 4;
const FRAME_HEADER = 9;
/** What precedes a gRPC message: a flag and its length. */
const MESSAGE_HEADER = 5;
const WINDOW = 2 ** 31 - 1;
const DEFAULT_WINDOW = 65_535;
/** Header table size 0, no push, and streams that never wait for us. */
const OUR_SETTINGS = [1, 0, 2, 0, 4, WINDOW];
const BUFFER = 1 << 20;

/** Given as the status of a call that the server broke off. */
export const RESET = -2;

/** Called at the end of a call: its tag, its gRPC status, and the bytes of its message when there was one. */
export type OnAnswer = (tag: number, status: number, message: Buffer | undefined) => void;
/** Called with each message of a stream: the tag of its call, and the bytes. */
export type OnMessage = (tag: number, message: Buffer) => void;

type Open = { tag: number; message: Buffer | undefined };
type Waiting = { tag: number; headers: Buffer; message: Buffer };

function frame(type: number, flags: number, stream: number, payload: Buffer): Buffer {
  const header = Buffer.alloc(FRAME_HEADER);
  header.writeUIntBE(payload.length, 0, 3);
  header[3] = type;
  header[4] = flags;
  header.writeUInt32BE(stream, 5);
  return Buffer.concat([header, payload]);
}

function windowUpdate(increment: number): Buffer {
  const payload = Buffer.alloc(4);
  payload.writeUInt32BE(increment);
  return frame(WINDOW_UPDATE, 0, 0, payload);
}

function settings(pairs: readonly number[]): Buffer {
  const payload = Buffer.alloc((pairs.length / 2) * 6);
  for (let at = 0; at < pairs.length; at += 2) {
    payload.writeUInt16BE(pairs[at] as number, at * 3);
    payload.writeUInt32BE(pairs[at + 1] as number, at * 3 + 2);
  }
  return frame(SETTINGS, 0, 0, payload);
}

/** Opens a connection to a gRPC server without TLS on this machine. With `onMessage`, its calls are streams. */
export async function open(port: number, onAnswer: OnAnswer, onMessage?: OnMessage): Promise<Connection> {
  const socket = connect({ host: "127.0.0.1", port, noDelay: true });
  await once(socket, "connect");
  return new Connection(socket, onAnswer, onMessage);
}

export class Connection {
  /** Rejects when the server ends the connection. */
  readonly lost: Promise<never>;
  readonly #socket: Socket;
  readonly #onAnswer: OnAnswer;
  readonly #onMessage: OnMessage | undefined;
  readonly #calls = new Map<number, Open>();
  readonly #out = Buffer.allocUnsafe(BUFFER);
  /** Calls that the server has no room for yet, in their order. */
  readonly #waiting: Waiting[] = [];
  #length = 0;
  #nextStream = 1;
  #room = DEFAULT_WINDOW;
  #received = 0;
  #rest: Buffer | undefined;
  #closing = false;

  constructor(socket: Socket, onAnswer: OnAnswer, onMessage?: OnMessage) {
    this.#socket = socket;
    this.#onAnswer = onAnswer;
    this.#onMessage = onMessage;
    const { promise, reject } = Promise.withResolvers<never>();
    this.lost = promise;
    promise.catch(() => {});
    socket.on("data", (chunk) => this.#read(chunk as Buffer));
    socket.on("error", reject);
    socket.on("close", () => this.#closing || reject(new Error("the server closed the connection")));
    socket.write(
      Buffer.concat([
        Buffer.from("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        settings(OUR_SETTINGS),
        windowUpdate(WINDOW - DEFAULT_WINDOW),
      ]),
    );
  }

  /** Makes a call, which goes out with the next `flush`. `message` is copied at once, or kept while there is no room. */
  call(tag: number, headers: Buffer, message: Buffer): void {
    if (this.#waiting.length === 0 && this.#hasRoom(message)) this.#start({ tag, headers, message });
    else this.#waiting.push({ tag, headers, message: Buffer.from(message) });
  }

  /** Sends what was called since the last time, in one write. */
  flush(): void {
    if (this.#length === 0) return;
    this.#socket.write(Buffer.copyBytesFrom(this.#out, 0, this.#length));
    this.#length = 0;
  }

  close(): void {
    this.#closing = true;
    this.#socket.destroy();
  }

  #hasRoom(message: Buffer): boolean {
    return message.length + MESSAGE_HEADER <= this.#room;
  }

  #start({ tag, headers, message }: Waiting): void {
    const size = message.length + MESSAGE_HEADER;
    this.#room -= size;
    const stream = this.#nextStream;
    this.#nextStream += 2;
    this.#calls.set(stream, { tag, message: undefined });
    if (this.#length + headers.length + size + 2 * FRAME_HEADER > BUFFER) this.flush();
    const out = this.#out;
    let at = this.#frame(HEADERS, END_HEADERS, stream, headers.length);
    at += headers.copy(out, at);
    this.#length = at;
    at = this.#frame(DATA, END_STREAM, stream, size);
    out[at] = 0;
    out.writeUInt32BE(message.length, at + 1);
    this.#length = at + MESSAGE_HEADER + message.copy(out, at + MESSAGE_HEADER);
  }

  #frame(type: number, flags: number, stream: number, length: number): number {
    const out = this.#out;
    const at = this.#length;
    out.writeUIntBE(length, at, 3);
    out[at + 3] = type;
    out[at + 4] = flags;
    out.writeUInt32BE(stream, at + 5);
    return at + FRAME_HEADER;
  }

  #read(chunk: Buffer): void {
    const bytes = this.#rest ? Buffer.concat([this.#rest, chunk]) : chunk;
    let at = 0;
    while (bytes.length - at >= FRAME_HEADER) {
      const end = at + FRAME_HEADER + bytes.readUIntBE(at, 3);
      if (end > bytes.length) break;
      const stream = bytes.readUInt32BE(at + 5);
      this.#handle(bytes[at + 3] as number, bytes[at + 4] as number, stream, bytes.subarray(at + FRAME_HEADER, end));
      at = end;
    }
    this.#rest = at < bytes.length ? bytes.subarray(at) : undefined;
    this.flush();
  }

  #handle(type: number, flags: number, stream: number, payload: Buffer): void {
    if (type === DATA) this.#onData(stream, payload);
    else if (type === HEADERS && flags & END_STREAM) this.#end(stream, grpcStatus(payload));
    else if (type === RST_STREAM) this.#end(stream, RESET);
    else if (type === SETTINGS && !(flags & ACK)) this.#socket.write(frame(SETTINGS, ACK, 0, Buffer.alloc(0)));
    else if (type === PING && !(flags & ACK)) this.#socket.write(frame(PING, ACK, 0, payload));
    else if (type === WINDOW_UPDATE && stream === 0) this.#onRoom(payload.readUInt32BE(0));
    else if (type === GOAWAY) this.#socket.destroy();
  }

  #onData(stream: number, payload: Buffer): void {
    const call = this.#calls.get(stream);
    if (call) call.message = call.message ? Buffer.concat([call.message, payload]) : payload;
    if (call && this.#onMessage) this.#handOut(call, this.#onMessage);
    this.#received += payload.length;
    if (this.#received < WINDOW / 2) return;
    this.#socket.write(windowUpdate(this.#received));
    this.#received = 0;
  }

  /** Gives the messages of a stream away that are complete. */
  #handOut(call: Open, onMessage: OnMessage): void {
    while (call.message && call.message.length >= MESSAGE_HEADER) {
      const end = MESSAGE_HEADER + call.message.readUInt32BE(1);
      if (call.message.length < end) return;
      const message = call.message.subarray(MESSAGE_HEADER, end);
      call.message = call.message.length > end ? call.message.subarray(end) : undefined;
      onMessage(call.tag, message);
    }
  }

  #onRoom(increment: number): void {
    this.#room += increment;
    let started = 0;
    for (const call of this.#waiting) {
      if (!this.#hasRoom(call.message)) break;
      this.#start(call);
      started += 1;
    }
    this.#waiting.splice(0, started);
  }

  #end(stream: number, status: number): void {
    const call = this.#calls.get(stream);
    if (!call) return;
    this.#calls.delete(stream);
    this.#onAnswer(call.tag, status, call.message?.subarray(MESSAGE_HEADER));
  }
}
