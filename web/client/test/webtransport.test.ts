import assert from "node:assert/strict";
import { type WebTransportConstructor } from "../src/webtransport.js";
import { Arrivals, subscribed, tickFrame, type FrameFields, type Message } from "./server.js";
import { generator, shuffledWithin } from "./random.js";
import { range, scenario } from "./setup.js";

/** A WebTransport session within this process: the client's end has the standard interface, the test drives the other. */
class FakeSession {
  static readonly opened = new Arrivals<FakeSession>();
  /** What happens when one is made: it becomes ready, fails, or nothing comes back, as when UDP is blocked. */
  static behaviour: "ready" | "fails" | "silent" = "ready";

  readonly messages = new Arrivals<Message>();
  readonly ready: Promise<void>;
  readonly closed: Promise<WebTransportCloseInfo>;
  readonly incomingUnidirectionalStreams: ReadableStream<ReadableStream<Uint8Array>>;
  readonly datagrams: { readable: ReadableStream<Uint8Array> };
  #close!: (how: WebTransportCloseInfo) => void;
  #streams!: ReadableStreamDefaultController<ReadableStream<Uint8Array>>;
  #datagrams!: ReadableStreamDefaultController<Uint8Array>;
  #control!: ReadableStreamDefaultController<Uint8Array>;
  #rest = "";

  constructor(
    readonly url: string,
    readonly options: WebTransportOptions,
  ) {
    this.ready = FakeSession.behaviour === "ready" ? Promise.resolve() : FakeSession.behaviour === "fails" ? Promise.reject(new Error("no route")) : new Promise(() => {});
    this.closed = new Promise((resolve) => (this.#close = resolve));
    this.incomingUnidirectionalStreams = new ReadableStream({ start: (controller) => void (this.#streams = controller) });
    this.datagrams = { readable: new ReadableStream({ start: (controller) => void (this.#datagrams = controller) }) };
    FakeSession.opened.push(this);
  }

  async createBidirectionalStream() {
    const readable = new ReadableStream<Uint8Array>({ start: (controller) => void (this.#control = controller) });
    const writable = new WritableStream<Uint8Array>({ write: (chunk) => this.#read(new TextDecoder().decode(chunk)) });
    return { readable, writable };
  }

  close(how: WebTransportCloseInfo = {}): void {
    this.#close(how);
  }

  async expect(op: string): Promise<Message> {
    const message = await this.messages.next();
    assert.equal(message["op"], op);
    return message;
  }

  /** Send a message, cut in two: lines need not arrive whole. */
  send(message: Message): void {
    const bytes = new TextEncoder().encode(`${JSON.stringify(message)}\n`);
    this.#control.enqueue(bytes.slice(0, 3));
    this.#control.enqueue(bytes.slice(3));
  }

  async admit(next: number, more: Message = {}): Promise<Message> {
    await this.expect("auth");
    this.send({ op: "authenticated" });
    return this.answer(next, more);
  }

  async answer(next: number, more: Message = {}): Promise<Message> {
    const request = await this.expect("subscribe");
    this.send(subscribed(request, next, more));
    return request;
  }

  frame(fields: FrameFields): void {
    const bytes = tickFrame({ subscription: "s1", ...fields });
    const half = bytes.length >> 1;
    this.#streams.enqueue(new Response(new Blob([bytes.slice(0, half), bytes.slice(half)])).body!);
  }

  /** Begin a stream, and reset it. */
  reset(): void {
    this.#streams.enqueue(new ReadableStream({ start: (controller) => controller.error(new Error("reset")) }));
  }

  datagram(fields: FrameFields): void {
    this.#datagrams.enqueue(tickFrame({ subscription: "s1", ...fields }));
  }

  #read(text: string): void {
    const lines = (this.#rest + text).split("\n");
    this.#rest = lines.pop() ?? "";
    for (const line of lines) this.messages.push(JSON.parse(line) as Message);
  }
}

const webTransport = FakeSession as unknown as WebTransportConstructor;
const url = "https://127.0.0.1:4433/api/realtime/wt";
const found = { enabled: true, url, certificate_hashes: [{ algorithm: "sha-256", value: btoa("\x01\x02\xff") }] };
const options = { transport: "auto", webTransport } as const;

scenario(
  "goes where the server says, trusting the certificate that it names",
  async (scene) => {
    scene.server.discovery = found;
    scene.stream.subscribe({ topics: ["tick"] }, scene.keep);
    const session = await FakeSession.opened.next();
    assert.equal(session.url, url);
    assert.deepEqual(session.options, { serverCertificateHashes: [{ algorithm: "sha-256", value: new Uint8Array([1, 2, 255]) }] });
    await session.admit(0);
    session.frame({ first: 0, count: 3, sequence: 0 });
    assert.deepEqual(await scene.kept(3), [0, 1, 2]);
    assert.equal(scene.stream.transport, "webtransport");
  },
  options,
);

scenario(
  "reports why the server ended the session, and connects again",
  async (scene) => {
    scene.server.discovery = found;
    scene.stream.subscribe({ topics: ["tick"] }, scene.keep);
    const session = await FakeSession.opened.next();
    await session.admit(0);
    session.close({ closeCode: 1013, reason: "too much waits for a lossless subscription" });
    const waiting = await scene.state("waiting");
    assert.ok(waiting.name === "waiting" && waiting.reason.detail === "too much waits for a lossless subscription");
    await (await FakeSession.opened.next()).admit(0);
  },
  options,
);

scenario(
  "holds live events back until the snapshot is whole, in whatever order its parts come",
  async ({ server, stream }) => {
    server.discovery = found;
    const missing: unknown[] = [];
    stream.on("gap", (gap) => missing.push(gap));
    const got: [bigint[], number | null][] = [];
    let finish = () => {};
    const finished = new Promise<void>((resolve) => (finish = resolve));
    stream.subscribe({ topics: ["tick"], snapshot: true }, (events, batch) => {
      got.push([events.map(({ offset }) => offset), batch.snapshotLeft]);
      if (got.length === 4) finish();
    });
    const session = await FakeSession.opened.next();
    await session.admit(40);
    session.frame({ first: 40, count: 2, sequence: 0 });
    session.frame({ first: 9, count: 1, sequence: 5, snapshotLeft: 0 });
    session.frame({ first: 5, count: 3, sequence: 2, snapshotLeft: 1 });
    session.frame({ first: 1, count: 2, sequence: 0, snapshotLeft: 4 });
    await finished;
    assert.deepEqual(got, [[[9n], 5], [[5n, 6n, 7n], 2], [[1n, 2n], 0], [[40n, 41n], null]]);
    assert.deepEqual(missing, []);
  },
  options,
);

scenario(
  "puts frames in order that arrive in any, also before the answer to the subscription",
  async ({ server, stream, keep, kept, gaps }) => {
    server.discovery = found;
    stream.subscribe({ topics: ["tick"] }, keep);
    const session = await FakeSession.opened.next();
    await session.expect("auth");
    session.send({ op: "authenticated" });
    const request = await session.expect("subscribe");
    const frames = range(0, 200).map((n) => ({ first: n * 3, count: 3, sequence: n * 3 }));
    const arriving = shuffledWithin(frames, 50, generator(7));
    for (const frame of arriving.slice(0, 60)) session.frame(frame);
    session.send(subscribed(request, 0));
    for (const frame of arriving.slice(60)) session.frame(frame);
    assert.deepEqual(await kept(600), range(0, 600));
    assert.equal(gaps.size, 0);
  },
  options,
);

scenario(
  "a frame that never comes is told of after a while, and holds nothing up for ever",
  async ({ server, stream, keep, kept, gaps }) => {
    server.discovery = found;
    stream.subscribe({ topics: ["tick"] }, keep);
    const session = await FakeSession.opened.next();
    await session.admit(0);
    session.frame({ first: 0, count: 2, sequence: 0 });
    session.reset();
    session.frame({ first: 7, count: 2, sequence: 7 });
    assert.deepEqual(await gaps.next(), { subscription: "s1", reason: "network", count: 5 });
    assert.deepEqual(await kept(4), [0, 1, 7, 8]);
    session.send({ op: "progress", id: "s1", sequence: 12, dropped: 0 });
    assert.deepEqual(await gaps.next(), { subscription: "s1", reason: "network", count: 3 });
    session.send({ op: "progress", id: "s1", sequence: 12, dropped: 6 });
    assert.deepEqual(await gaps.next(), { subscription: "s1", reason: "policy", count: 6 });
  },
  { ...options, reorderMs: 30 },
);

scenario(
  "what the server dropped is counted once, also when the frame that told of it is lost",
  async ({ server, stream, keep, kept, gaps }) => {
    server.discovery = found;
    stream.subscribe({ topics: ["tick"] }, keep);
    const session = await FakeSession.opened.next();
    await session.admit(0);
    session.frame({ first: 3, count: 1, sequence: 0, dropped: 3, droppedTotal: 3 });
    assert.deepEqual(await gaps.next(), { subscription: "s1", reason: "policy", count: 3 });
    session.reset(); // it told of 4 more
    session.frame({ first: 12, count: 1, sequence: 2, dropped: 2, droppedTotal: 9 });
    assert.deepEqual(await gaps.next(), { subscription: "s1", reason: "network", count: 1 });
    assert.deepEqual(await gaps.next(), { subscription: "s1", reason: "policy", count: 6 });
    assert.deepEqual(await kept(2), [3, 12]);
    session.send({ op: "progress", id: "s1", sequence: 3, dropped: 0, dropped_total: 9 });
    session.send({ op: "progress", id: "s1", sequence: 3, dropped: 1, dropped_total: 10 });
    assert.deepEqual(await gaps.next(), { subscription: "s1", reason: "policy", count: 1 });
  },
  { ...options, reorderMs: 30 },
);

scenario(
  "a lossless subscription fetches again what did not come",
  async ({ server, stream, keep, kept, gaps }) => {
    server.discovery = found;
    stream.subscribe({ topics: ["tick"], onSlow: "lossless" }, keep);
    const session = await FakeSession.opened.next();
    await session.admit(0);
    session.frame({ first: 0, count: 2, sequence: 0 });
    session.frame({ first: 4, count: 2, sequence: 4 });
    assert.equal((await session.expect("unsubscribe"))["id"], "s1");
    session.send({ op: "unsubscribed", id: "s1", dropped: 0 });
    const request = await session.answer(2);
    assert.deepEqual([request["id"], request["from"]], ["s1~2", { cursor: { tick: { "0": 2 } }, log: "log-1" }]);
    session.frame({ first: 2, count: 2, sequence: 2 }); // late, and of the subscription that was left
    session.frame({ first: 2, count: 4, sequence: 0, subscription: "s1~2" });
    assert.deepEqual(await kept(6), range(0, 6));
    assert.equal(gaps.size, 0);
  },
  { ...options, reorderMs: 30 },
);

scenario(
  "datagrams are handed over as they come, and what is missing is told once",
  async ({ server, stream, keep, kept, gaps }) => {
    server.discovery = found;
    stream.subscribe({ topics: ["tick"], delivery: "datagram" }, keep);
    const session = await FakeSession.opened.next();
    const request = await session.admit(0);
    assert.equal(request["delivery"], "datagram");
    session.datagram({ first: 2, count: 1, sequence: 2 });
    session.datagram({ first: 0, count: 1, sequence: 0 });
    assert.deepEqual(await kept(2), [2, 0]);
    session.send({ op: "progress", id: "s1", sequence: 5, dropped: 0 });
    assert.equal(((await gaps.next()).count ?? 0) + ((await gaps.next()).count ?? 0), 3);
    session.close();
    const again = await FakeSession.opened.next();
    assert.equal((await again.admit(30, { start: "live" }))["from"], "live");
    const offline = await gaps.next();
    assert.deepEqual([offline.reason, offline.gaps], ["offline", { tick: { "0": { from: 3, to: 30 } } }]);
  },
  { ...options, reorderMs: 30 },
);

scenario(
  "resumes over another session, from what it received and not from what was on its way",
  async ({ server, stream, keep, kept }) => {
    server.discovery = found;
    stream.subscribe({ topics: ["tick"] }, keep);
    const session = await FakeSession.opened.next();
    await session.admit(0);
    session.frame({ first: 0, count: 2, sequence: 0 });
    await kept(2);
    session.send({ op: "closing", code: "going_away", detail: "", retry_after_s: 0, log: "log-1", cursors: { s1: { tick: { "0": 50 } } } });
    session.close({ closeCode: 1001 });
    const again = await FakeSession.opened.next();
    assert.deepEqual((await again.admit(2))["from"], { cursor: { tick: { "0": 2 } }, log: "log-1" });
  },
  options,
);

for (const behaviour of ["fails", "silent"] as const) {
  scenario(
    `goes on over a WebSocket when WebTransport ${behaviour === "fails" ? "fails" : "gives no answer"}, and does not try it each time`,
    async ({ server, stream, keep, kept, errors }) => {
      server.discovery = found;
      FakeSession.behaviour = behaviour;
      try {
        // A datagram subscription is a stream there.
        stream.subscribe({ topics: ["tick"], delivery: "datagram" }, keep);
        const peer = await server.peers.next();
        assert.equal((await peer.admit(0))["delivery"], undefined);
        peer.frame({ first: 0, count: 1 });
        await kept(1);
        assert.equal((await errors.next()).code, "fallback");
        assert.equal(stream.transport, "websocket");
        await FakeSession.opened.next();
        peer.drop();
        await (await server.peers.next()).admit(1);
        assert.equal(FakeSession.opened.size, 0);
      } finally {
        FakeSession.behaviour = "ready";
      }
    },
    { ...options, webTransportTimeoutMs: 50 },
  );
}

scenario(
  "a server without WebTransport is used over a WebSocket",
  async ({ server, stream, keep }) => {
    stream.subscribe({ topics: ["tick"] }, keep);
    await (await server.peers.next()).admit(0);
    assert.equal(stream.transport, "websocket");
    assert.equal(FakeSession.opened.size, 0);
  },
  options,
);

scenario(
  "a refused key is not tried again over a WebSocket",
  async (scene) => {
    scene.server.discovery = found;
    scene.stream.subscribe({ topics: ["tick"] }, scene.keep);
    const session = await FakeSession.opened.next();
    await session.expect("auth");
    session.send({ op: "error", id: null, code: "unauthorized", detail: "no such key" });
    session.close({ closeCode: 4401 });
    await scene.state("closed");
    assert.equal(scene.server.peers.size, 0);
  },
  options,
);

let tickets = 0;
scenario(
  "each connection has a ticket of its own",
  async (scene) => {
    scene.server.discovery = found;
    scene.stream.subscribe({ topics: ["tick"] }, scene.keep);
    const session = await FakeSession.opened.next();
    assert.deepEqual(await session.expect("auth"), { op: "auth", ticket: "ticket-1" });
    session.close();
    const peer = await scene.server.peers.next();
    assert.deepEqual(await peer.welcome(), { op: "auth", ticket: "ticket-2" });
  },
  { ...options, ticket: () => `ticket-${(tickets += 1)}` },
);
