import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { decodeFrame } from "../src/events.js";

interface Slice {
  readonly topic: string;
  readonly partition: number;
  readonly next_offset: string;
  readonly events: readonly { readonly offset: string; readonly published_ms: number; readonly value: string }[];
}
interface Vector {
  readonly name: string;
  readonly frame: string;
  readonly expect: {
    readonly subscription: string;
    readonly sent_at_ns: string;
    readonly resume: string;
    readonly dropped: number;
    readonly dropped_total: number;
    readonly queued: number;
    readonly lag_ms: number;
    readonly sequence: number;
    readonly slices: readonly Slice[];
  };
}
interface Vectors {
  readonly frames: readonly Vector[];
  readonly malformed: readonly { readonly name: string; readonly frame: string }[];
}

function root(): URL {
  for (let at = new URL(".", import.meta.url); at.pathname !== "/"; at = new URL("..", at)) {
    try {
      readFileSync(new URL("protocol/testdata/stream.json", at));
      return at;
    } catch {
      // further up
    }
  }
  throw new Error("protocol/testdata/stream.json is not above the tests");
}

const vectors = JSON.parse(readFileSync(new URL("protocol/testdata/stream.json", root()), "utf8")) as Vectors;
const bytes = (hex: string): Uint8Array => new Uint8Array(Buffer.from(hex, "hex"));

for (const { name, frame, expect } of vectors.frames) {
  test(`frame with ${name} is decoded as published`, () => {
    const found = decodeFrame(bytes(frame));
    assert.equal(found.subscription, expect.subscription);
    assert.equal(found.sentAtNs, BigInt(expect.sent_at_ns));
    assert.equal(found.resume, expect.resume);
    assert.deepEqual(
      [found.dropped, found.droppedTotal, found.queued, found.lagMs, found.sequence],
      [expect.dropped, expect.dropped_total, expect.queued, expect.lag_ms, expect.sequence],
    );
    const events = expect.slices.flatMap((slice) =>
      slice.events.map((event) => [slice.partition, BigInt(event.offset), event.published_ms]),
    );
    assert.deepEqual(
      found.events.map((event) => [event.partition, event.offset, event.publishedMs]),
      events,
    );
    assert.deepEqual(
      found.steps.map((step) => [step.partition, step.next]),
      expect.slices.map((slice) => [slice.partition, Number(slice.next_offset)]),
    );
  });
}

for (const { name, frame } of vectors.malformed) {
  test(`frame that is malformed (${name}) is refused`, () => {
    assert.throws(() => decodeFrame(bytes(frame)));
  });
}
