import assert from "node:assert/strict";
import { test } from "node:test";
import { getOption } from "@bufbuild/protobuf";
import { decodeFrame, EVENT_SCHEMAS } from "../src/events.js";
import { file_mev_v1_events } from "../src/gen/mev/v1/events_pb.js";
import { event } from "../src/gen/mev/v1/options_pb.js";
import type { WorkerAnswer } from "../src/decoder.js";
import { Arrivals, tickFrame } from "./server.js";
import { range, scenario } from "./setup.js";

/** A worker within this thread: what passes its border is copied, and answers come later. */
class FakeWorker {
  static readonly started = new Arrivals<FakeWorker>();
  onmessage: ((event: { data: WorkerAnswer }) => void) | null = null;
  onerror: ((event: { preventDefault?: () => void }) => void) | null = null;
  onmessageerror: (() => void) | null = null;
  terminated = false;
  decoded = 0;
  /** When set, frames get no answer until it fails. */
  stuck = false;

  constructor() {
    FakeWorker.started.push(this);
  }

  ready(): void {
    this.#answer({ ready: true });
  }

  postMessage(bytes: Uint8Array<ArrayBuffer>, transfer: ArrayBuffer[]): void {
    const inside = structuredClone(bytes, { transfer });
    assert.equal(bytes.length, 0, "the bytes were handed over, not copied");
    if (this.stuck) return;
    this.decoded += 1;
    setTimeout(() => this.#answer(decodeOrFail(inside)), 1);
  }

  fail(): void {
    this.onerror?.({});
  }

  terminate(): void {
    this.terminated = true;
  }

  #answer(answer: WorkerAnswer): void {
    this.onmessage?.({ data: structuredClone(answer) });
  }
}

function decodeOrFail(bytes: Uint8Array): WorkerAnswer {
  try {
    return { frame: decodeFrame(bytes) };
  } catch (error) {
    return { failure: String(error) };
  }
}

const options = { worker: () => new FakeWorker() as unknown as Worker };

test("knows every event type that the protocol has", () => {
  const names = file_mev_v1_events.messages.flatMap((message) => {
    const name = message.proto.options && getOption(message, event).name;
    return name ? [[name, message.typeName]] : [];
  });
  assert.deepEqual(Object.entries(EVENT_SCHEMAS).map(([name, schema]) => [name, schema.typeName]), names.sort());
});

test("reads offsets by their steps", () => {
  const frame = decodeFrame(tickFrame({ first: 2 ** 40, count: 3, steps: [1, 7], partition: 4, dropped: 2, sequence: 9, subscription: "x" }));
  assert.deepEqual(frame.events.map(({ offset }) => offset), [2n ** 40n, 2n ** 40n + 1n, 2n ** 40n + 8n]);
  assert.deepEqual(frame.steps, [{ type: "tick", partition: 4, next: 2 ** 40 + 9 }]);
  assert.deepEqual(decodeFrame(tickFrame({ first: 7 })).steps, [{ type: "tick", partition: 0, next: 7 }], "how far a filter has looked");
  assert.deepEqual(frame.events.map(({ publishedMs }) => publishedMs), [0, 0, 0], "not known");
  const timed = decodeFrame(tickFrame({ count: 3, published: [1_700_000_000_000, 1_700_000_000_005, 1_699_999_999_999], resume: "token" }));
  assert.deepEqual(timed.events.map(({ publishedMs }) => publishedMs), [1_700_000_000_000, 1_700_000_000_005, 1_699_999_999_999]);
  assert.equal(timed.resume, "token");
  assert.deepEqual([frame.dropped, frame.sequence, frame.subscription, frame.count], [2, 9, "x", 3]);
});

scenario(
  "frames and messages keep their order through the worker, from the first frame on",
  async ({ server, stream, keep, kept }) => {
    stream.subscribe({ topics: ["tick"] }, keep);
    const worker = await FakeWorker.started.next();
    const peer = await server.peers.next();
    await peer.admit(0);
    peer.frame({ first: 0, count: 3 });
    await kept(3);
    worker.ready();
    for (const n of range(1, 50)) peer.frame({ first: n * 3, count: 3 });
    peer.send({ op: "closing", code: "going_away", retry_after_s: 0, log: "log-1", cursors: {} });
    peer.close(1001);
    const again = await server.peers.next();
    // Everything that arrived counts, also what was not decoded yet when the connection ended.
    assert.deepEqual((await again.admit(150))["from"], { cursor: { tick: { "0": 150 } }, log: "log-1" });
    assert.deepEqual(await kept(150), range(0, 150));
    assert.equal(worker.decoded, 49);
  },
  options,
);

scenario(
  "a worker that fails costs a reconnection and no event",
  async ({ server, stream, keep, kept, gaps }) => {
    stream.subscribe({ topics: ["tick"] }, keep);
    const worker = await FakeWorker.started.next();
    worker.ready();
    const peer = await server.peers.next();
    await peer.admit(0);
    peer.frame({ first: 0, count: 2 });
    await kept(2);
    worker.stuck = true;
    peer.frame({ first: 2, count: 2 });
    const updating = stream.subscribe({ topics: ["tick"] }, () => {});
    await peer.expect("subscribe");
    worker.fail();
    assert.ok(worker.terminated);
    const again = await server.peers.next();
    assert.deepEqual((await again.admit(2))["from"], { cursor: { tick: { "0": 2 } }, log: "log-1" });
    await again.answer(2);
    await updating.ready;
    again.frame({ first: 2, count: 2, subscription: "s1" });
    assert.deepEqual(await kept(4), range(0, 4));
    assert.equal(gaps.size, 0);
  },
  options,
);
