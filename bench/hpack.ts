/** The little of HPACK (RFC 7541) that a gRPC client needs: literals out, and one number in. */

/** Entries of the static table. */
const METHOD_POST = 3;
const SCHEME_HTTP = 6;
const nameIndex: Readonly<Record<string, number>> = {
  ":authority": 1,
  ":path": 4,
  authorization: 23,
  "content-type": 31,
};

/** An integer with a prefix of so many bits, `flags` in the bits before it. */
function integer(value: number, bits: number, flags: number): number[] {
  const most = 2 ** bits - 1;
  if (value < most) return [flags | value];
  const bytes = [flags | most];
  let rest = value - most;
  for (; rest >= 128; rest >>= 7) bytes.push((rest & 127) | 128);
  return [...bytes, rest];
}

function string(value: string): Buffer {
  return Buffer.concat([Buffer.from(integer(value.length, 7, 0)), Buffer.from(value, "latin1")]);
}

/** The headers of a gRPC call as one block that needs no state: it can be made once and sent by any connection. */
export function headerBlock(headers: Readonly<Record<string, string>>): Buffer {
  const fields = Object.entries(headers).map(([name, value]) => {
    const index = nameIndex[name];
    const start = index === undefined ? Buffer.concat([Buffer.of(0), string(name)]) : integer(index, 4, 0);
    return Buffer.concat([Buffer.from(start), string(value)]);
  });
  return Buffer.concat([Buffer.of(0x80 | METHOD_POST, 0x80 | SCHEME_HTTP), ...fields]);
}

/** The code of each letter in `grpc-status`, from the appendix of RFC 7541. */
const huffman: Readonly<Record<string, string>> = {
  "-": "010110",
  a: "00011",
  c: "00100",
  g: "100110",
  p: "101011",
  r: "101100",
  s: "01000",
  t: "01001",
  u: "101101",
};

/** `grpc-status` as servers write it: Huffman-coded, padded with ones to whole bytes, after its length. */
function codedName(): Buffer {
  const bits = Array.from("grpc-status", (letter) => huffman[letter]).join("");
  const bytes = bits
    .padEnd(Math.ceil(bits.length / 8) * 8, "1")
    .match(/.{8}/g)
    ?.map((byte) => Number.parseInt(byte, 2));
  return Buffer.from([0x80 | (bytes?.length ?? 0), ...(bytes ?? [])]);
}

const STATUS = codedName();

/**
 * Finds `grpc-status` in a header block of a peer that was told to keep no table of headers. Returns -1 when there is
 * none. Its digits are never coded, since that would not make them shorter.
 */
export function grpcStatus(block: Buffer): number {
  const at = block.indexOf(STATUS);
  if (at < 0) return -1;
  const start = at + STATUS.length + 1;
  return Number(block.toString("latin1", start, start + (block[start - 1] as number)));
}
