// Verification of an audit record in the browser: its leaf, the path to the root, the signature of the checkpoint.
import { concat, equal, fromBase64, fromHex, isConsistent, leafHash, rootOfInclusion, toHex, type Bytes } from "./merkle";

export interface Inclusion {
  readonly log_id: string;
  readonly index: number;
  readonly record: string | null;
  readonly leaf_hash: string;
  readonly size: number;
  readonly root_hash: string;
  readonly proof: string[];
  readonly checkpoint: string;
}

export interface Consistency {
  readonly from_size: number;
  readonly to_size: number;
  readonly from_root: string;
  readonly to_root: string;
  readonly proof: string[];
}

export interface Step {
  readonly text: string;
  readonly good: boolean;
}

interface Envelope {
  readonly type: string;
  readonly payload: Bytes;
  readonly signatures: readonly { readonly keyId: string; readonly signature: Bytes }[];
}

const CHECKPOINT_TYPE = "application/vnd.mev.checkpoint.v1+protobuf";
const ED25519 = 1;

/** Return the fields of a Protobuf message: bytes, or numbers of varints. */
export function fieldsOf(message: Bytes): Map<number, (Bytes | bigint)[]> {
  const fields = new Map<number, (Bytes | bigint)[]>();
  let at = 0;
  const varint = (): bigint => {
    let value = 0n;
    for (let shift = 0n; ; shift += 7n) {
      const byte = message[at++];
      if (byte === undefined || shift > 63n) throw new Error("not a message");
      value |= BigInt(byte & 127) << shift;
      if (byte < 128) return value;
    }
  };
  while (at < message.length) {
    const tag = varint();
    const wire = tag & 7n;
    let value: Bytes | bigint;
    if (wire === 0n) value = varint();
    else if (wire === 2n) {
      const length = Number(varint());
      if (at + length > message.length) throw new Error("not a message");
      value = message.slice(at, at + length);
      at += length;
    } else throw new Error("a field of an unexpected kind");
    const number = Number(tag >> 3n);
    fields.set(number, [...(fields.get(number) ?? []), value]);
  }
  return fields;
}

const bytesAt = (fields: Map<number, (Bytes | bigint)[]>, number: number): Bytes => (fields.get(number)?.at(-1) as Bytes | undefined) ?? new Uint8Array();
const text = (bytes: Bytes): string => new TextDecoder().decode(bytes);

function envelopeOf(bytes: Bytes): Envelope {
  const fields = fieldsOf(bytes);
  const signatures = ((fields.get(3) ?? []) as Bytes[]).map((one) => {
    const inner = fieldsOf(one);
    return { keyId: text(bytesAt(inner, 1)), signature: bytesAt(inner, 2) };
  });
  return { type: text(bytesAt(fields, 1)), payload: bytesAt(fields, 2), signatures };
}

/** Return the signed bytes: DSSE's pre-authentication encoding. */
export function pae(type: string, payload: Bytes): Bytes {
  const head = new TextEncoder().encode(`DSSEv1 ${new TextEncoder().encode(type).length} ${type} ${payload.length} `);
  return concat(head, payload);
}

/** Return the public key of a verifier key `NAME+HASH+BASE64`. */
export function publicKeyOf(verifierKey: string): Bytes {
  const key = fromBase64(verifierKey.trim().split("+").slice(2).join("+"));
  if (key[0] !== ED25519 || key.length !== 33) throw new Error("not an Ed25519 key");
  return key.slice(1);
}

async function isSigned(envelope: Envelope, publicKey: Bytes): Promise<boolean> {
  const key = await crypto.subtle.importKey("raw", publicKey, "Ed25519", false, ["verify"]);
  const message = pae(envelope.type, envelope.payload);
  for (const { signature } of envelope.signatures) {
    if (await crypto.subtle.verify("Ed25519", key, signature, message)) return true;
  }
  return false;
}

/** Verify that a record is in its log under a signed checkpoint; every step says what it found. */
export async function verifyInclusion(found: Inclusion, verifierKey: string): Promise<Step[]> {
  const leaf = found.record === null ? fromHex(found.leaf_hash) : await leafHash(fromBase64(found.record));
  const root = await rootOfInclusion(found.index, found.size, leaf, found.proof.map(fromHex));
  const envelope = envelopeOf(fromBase64(found.checkpoint));
  const checkpoint = fieldsOf(envelope.payload);
  const signedRoot = bytesAt(checkpoint, 3);
  const sameLog = text(bytesAt(checkpoint, 1)) === found.log_id && checkpoint.get(2)?.[0] === BigInt(found.size);
  return [
    found.record === null
      ? { text: "The record was removed by retention; its hash is kept", good: true }
      : { text: `The record has the leaf hash ${found.leaf_hash.slice(0, 16)}…`, good: toHex(leaf) === found.leaf_hash },
    { text: `${found.proof.length} hashes lead from it to the root ${toHex(signedRoot).slice(0, 16)}…`, good: root !== null && equal(root, signedRoot) },
    { text: `The checkpoint is of log ${found.log_id} with ${found.size} records`, good: sameLog && envelope.type === CHECKPOINT_TYPE },
    { text: `The checkpoint is signed by key ${envelope.signatures[0]?.keyId ?? "none"}`, good: await isSigned(envelope, publicKeyOf(verifierKey)) },
  ];
}

/** Say whether a log begins with the one that this browser verified before. */
export function verifyConsistency(found: Consistency, knownRoot: string): Promise<boolean> {
  if (found.from_root !== knownRoot) return Promise.resolve(false);
  return isConsistent(found.from_size, found.to_size, fromHex(found.from_root), fromHex(found.to_root), found.proof.map(fromHex));
}
