import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { fromHex, isConsistent, leafHash, rootOfInclusion, toHex } from "../src/lib/merkle";
import { fieldsOf, pae, publicKeyOf, verifyInclusion } from "../src/lib/audit";

interface Vectors {
  readonly leaves: string[];
  readonly roots: string[];
  readonly inclusion: { readonly index: number; readonly size: number; readonly proof: string[] }[];
  readonly consistency: { readonly old: number; readonly new: number; readonly proof: string[] }[];
}
const read = <T>(name: string): T => JSON.parse(readFileSync(new URL(`../../../protocol/testdata/${name}`, import.meta.url), "utf8")) as T;
const vectors = read<Vectors>("merkle.json");
// Every log begins with the empty one; there is nothing to verify.
const consistency = vectors.consistency.filter((each) => each.old > 0).map((each) => ({ from: each.old, to: each.new, proof: each.proof }));
const root = (size: number) => fromHex(vectors.roots[size]!);

describe("the vectors of the protocol", () => {
  it.each(vectors.inclusion)("include leaf $index of $size", async ({ index, size, proof }) => {
    const leaf = await leafHash(fromHex(vectors.leaves[index]!));
    const found = await rootOfInclusion(index, size, leaf, proof.map(fromHex));
    expect(found && toHex(found)).toBe(vectors.roots[size]);
  });

  it.each(consistency)("begin $to with $from", async ({ from, to, proof }) => {
    expect(await isConsistent(from, to, root(from), root(to), proof.map(fromHex))).toBe(true);
  });

  it.each(consistency.filter(({ proof }) => proof.length > 0))("refuse a changed proof from $from to $to", async ({ from, to, proof }) => {
    const changed = proof.map(fromHex);
    changed[0]![0]! ^= 1;
    expect(await isConsistent(from, to, root(from), root(to), changed)).toBe(false);
  });
});

it("refuses a proof for another index, a shorter and a longer path", async () => {
  const { index, size, proof } = vectors.inclusion.find((each) => each.size === 7 && each.proof.length === 3)!;
  const leaf = await leafHash(fromHex(vectors.leaves[index]!));
  const path = proof.map(fromHex);
  for (const [at, steps] of [[index + 1, path], [index, path.slice(1)], [index, [...path, path[0]!]], [size, path]] as const) {
    const found = await rootOfInclusion(at, size, leaf, steps);
    expect(found === null ? null : toHex(found)).not.toBe(vectors.roots[size]);
  }
});

it("reads the public key of a verifier key", () => {
  expect(publicKeyOf(read<{ verifier_key: string }>("tlog.json").verifier_key)).toHaveLength(32);
  expect(() => publicKeyOf("name+00000000+AAAA")).toThrow("Ed25519");
});

it("does not read past the end of a message", () => {
  expect(() => fieldsOf(Uint8Array.of(0x0a, 0x05, 0x01))).toThrow("not a message");
  expect(() => fieldsOf(Uint8Array.of(0x80))).toThrow("not a message");
});

describe("a record under a signed checkpoint", () => {
  const bytes = (...parts: (string | Uint8Array | number)[]) =>
    Uint8Array.from(parts.flatMap((part) => (typeof part === "number" ? [part] : [...(typeof part === "string" ? new TextEncoder().encode(part) : part)])));
  const field = (number: number, content: Uint8Array) => bytes((number << 3) | 2, content.length, content);
  const base64 = (content: Uint8Array) => Buffer.from(content).toString("base64");
  const TYPE = "application/vnd.mev.checkpoint.v1+protobuf";

  async function signed() {
    const pair = (await crypto.subtle.generateKey("Ed25519", true, ["sign", "verify"])) as CryptoKeyPair;
    const record = bytes("a record");
    const hash = await leafHash(record);
    const payload = bytes(field(1, bytes("log-1")), 0x10, 1, field(3, hash));
    const signature = new Uint8Array(await crypto.subtle.sign("Ed25519", pair.privateKey, pae(TYPE, payload)));
    const envelope = bytes(field(1, bytes(TYPE)), field(2, payload), field(3, bytes(field(1, bytes("key")), field(2, signature))));
    const key = new Uint8Array(await crypto.subtle.exportKey("raw", pair.publicKey));
    return {
      found: { log_id: "log-1", index: 0, record: base64(record), leaf_hash: toHex(hash), size: 1, root_hash: toHex(hash), proof: [], checkpoint: base64(envelope) },
      key: `name+00000000+${base64(bytes(1, key))}`,
    };
  }
  const verdicts = async (found: Awaited<ReturnType<typeof signed>>["found"], key: string) => (await verifyInclusion(found, key)).map((step) => step.good);

  it("is verified step by step", async () => {
    const { found, key } = await signed();
    expect(await verdicts(found, key)).toEqual([true, true, true, true]);
  });

  it("is not verified with another record, log, size or key", async () => {
    const { found, key } = await signed();
    const other = await signed();
    expect(await verdicts({ ...found, record: base64(bytes("another")) }, key)).toEqual([false, false, true, true]);
    expect(await verdicts({ ...found, log_id: "log-2" }, key)).toEqual([true, true, false, true]);
    expect(await verdicts({ ...found, size: 2 }, key)).toEqual([true, false, false, true]);
    expect(await verdicts(found, other.key)).toEqual([true, true, true, false]);
  });
});
