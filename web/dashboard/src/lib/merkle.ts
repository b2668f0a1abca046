// Merkle trees of RFC 6962: proofs that a record is in a log, and that a log begins with an older one.

export type Bytes = Uint8Array<ArrayBuffer>;

export function fromHex(text: string): Bytes {
  if (!/^([0-9a-f]{2})*$/.test(text)) throw new Error("not hexadecimal");
  return Uint8Array.from(text.match(/../g) ?? [], (pair) => Number.parseInt(pair, 16));
}

export const toHex = (bytes: Uint8Array): string => [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");

export function fromBase64(text: string): Bytes {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}

export function concat(...parts: readonly Uint8Array[]): Bytes {
  const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

export const equal = (a: Uint8Array, b: Uint8Array): boolean => a.length === b.length && a.every((byte, index) => byte === b[index]);

async function sha256(...parts: readonly Uint8Array[]): Promise<Bytes> {
  return new Uint8Array(await crypto.subtle.digest("SHA-256", concat(...parts)));
}

/** Return the hash of a leaf. */
export const leafHash = (record: Uint8Array): Promise<Bytes> => sha256(Uint8Array.of(0), record);
const nodeHash = (left: Uint8Array, right: Uint8Array): Promise<Bytes> => sha256(Uint8Array.of(1), left, right);

/** Return the root that a leaf at `index` of `size` has by its path (RFC 9162, 2.1.3.2); null when the path does not fit. */
export async function rootOfInclusion(index: number, size: number, leaf: Bytes, path: readonly Bytes[]): Promise<Bytes | null> {
  if (index < 0 || index >= size) return null;
  let node = index;
  let last = size - 1;
  let hash = leaf;
  for (const sibling of path) {
    if (last === 0) return null;
    if (node % 2 === 1 || node === last) {
      hash = await nodeHash(sibling, hash);
      while (node % 2 === 0 && node !== 0) {
        node = Math.floor(node / 2);
        last = Math.floor(last / 2);
      }
    } else hash = await nodeHash(hash, sibling);
    node = Math.floor(node / 2);
    last = Math.floor(last / 2);
  }
  return last === 0 ? hash : null;
}

/** Say whether the log of `to` records begins with that of `from` (RFC 9162, 2.1.4.2). */
export async function isConsistent(from: number, to: number, fromRoot: Bytes, toRoot: Bytes, proof: readonly Bytes[]): Promise<boolean> {
  if (from > to || from < 1) return false;
  if (from === to) return proof.length === 0 && equal(fromRoot, toRoot);
  const path = [...proof];
  let node = from - 1;
  let last = to - 1;
  while (node % 2 === 1) {
    node = Math.floor(node / 2);
    last = Math.floor(last / 2);
  }
  // Where `from` is a power of two, its root is the first hash of the path.
  const first = node === 0 ? fromRoot : path.shift();
  if (!first) return false;
  let old = first;
  let now = first;
  for (const hash of path) {
    if (last === 0) return false;
    if (node % 2 === 1 || node === last) {
      old = await nodeHash(hash, old);
      now = await nodeHash(hash, now);
      while (node % 2 === 0 && node !== 0) {
        node = Math.floor(node / 2);
        last = Math.floor(last / 2);
      }
    } else now = await nodeHash(now, hash);
    node = Math.floor(node / 2);
    last = Math.floor(last / 2);
  }
  return last === 0 && equal(old, fromRoot) && equal(now, toRoot);
}
