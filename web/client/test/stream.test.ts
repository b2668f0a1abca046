import assert from "node:assert/strict";
import { test } from "node:test";
import { WebSocket } from "ws";
import { Stream, type StreamError } from "../src/index.js";
import { Arrivals, FakeServer } from "./server.js";
import { range, scenario } from "./setup.js";

scenario("says who it is, subscribes and hands over typed events", async ({ server, stream, keep, kept }) => {
  const subscription = stream.subscribe({ topics: ["tick"], filter: ["slot > 1"], onSlow: "conflate", maxRate: 5, from: "earliest" }, keep);
  const peer = await server.peers.next();
  assert.deepEqual(await peer.welcome(), { op: "auth", api_key: "key" });
  const request = await peer.answer(7, { start: "resumed" });
  assert.deepEqual(request, { op: "subscribe", id: "s1", topics: ["tick"], filter: ["slot > 1"], on_slow: "conflate", max_rate: 5, from: "earliest" });
  peer.frame({ first: 7, count: 3, steps: [1, 5] });
  assert.deepEqual(await kept(3), [7, 8, 13]);
  assert.deepEqual(subscription.position, { cursor: { tick: { "0": 14 } }, log: "log-1" });
  assert.equal((await subscription.ready).start, "resumed");
});

scenario("resumes behind what it received, without a repeat and without a hole", async ({ server, stream, keep, kept, gaps }) => {
  stream.subscribe({ topics: ["tick"] }, keep);
  const first = await server.peers.next();
  await first.admit(10);
  first.frame({ first: 10, count: 5 });
  await kept(5);
  first.drop();
  const second = await server.peers.next();
  const request = await second.admit(15);
  assert.deepEqual(request["from"], { cursor: { tick: { "0": 15 } }, log: "log-1" });
  second.frame({ first: 13, count: 4 }); // a server that repeats itself is not believed
  second.frame({ first: 17, count: 3 });
  assert.deepEqual(await kept(10), range(10, 20));
  assert.equal(gaps.size, 0);
});

scenario("resumes at the start when nothing came yet", async ({ server, stream, keep }) => {
  stream.subscribe({ topics: ["tick"] }, keep);
  const first = await server.peers.next();
  await first.admit(10);
  first.drop();
  const second = await server.peers.next();
  assert.deepEqual((await second.admit(10))["from"], { cursor: { tick: { "0": 10 } }, log: "log-1" });
});

scenario("a connection lost before the answer asks the same again", async ({ server, stream, keep }) => {
  stream.subscribe({ topics: ["tick"], from: { slot: 5 } }, keep);
  const first = await server.peers.next();
  await first.welcome();
  await first.expect("subscribe");
  first.drop();
  const second = await server.peers.next();
  assert.deepEqual((await second.admit(10))["from"], { slot: 5 });
});

scenario("goes on where a closing server says, and not before it says", async (scene) => {
  const { server, stream, keep, kept } = scene;
  stream.subscribe({ topics: ["tick"] }, keep);
  const first = await server.peers.next();
  await first.admit(0);
  first.frame({ first: 0, count: 2 });
  await kept(2);
  const cursors = { s1: { tick: { "0": 40 } } };
  first.send({ op: "closing", code: "too_slow", detail: "reads too slowly", retry_after_s: 1, log: "log-1", cursors });
  first.close(1013);
  const waiting = await scene.state("waiting");
  assert.ok(waiting.name === "waiting" && waiting.delayMs >= 1000 && waiting.reason.code === "too_slow");
  const second = await server.peers.next();
  assert.deepEqual((await second.admit(40))["from"], { cursor: { tick: { "0": 40 } }, log: "log-1" });
});

scenario("a cursor of another log is not taken over", async ({ server, stream, keep }) => {
  stream.subscribe({ topics: ["tick"] }, keep);
  const first = await server.peers.next();
  await first.admit(3);
  first.send({ op: "closing", code: "going_away", retry_after_s: 0, log: "log-2", cursors: { s1: { tick: { "0": 40 } } } });
  first.close(1001);
  const second = await server.peers.next();
  assert.deepEqual((await second.admit(3))["from"], { cursor: { tick: { "0": 3 } }, log: "log-1" });
});

scenario("tells of a gap with its offsets, and of a reset", async ({ server, stream, keep, kept, gaps }) => {
  stream.subscribe({ topics: ["tick"], from: { cursor: { tick: { "0": 2 } } } }, keep);
  const first = await server.peers.next();
  const missing = { tick: { "0": { from: 2, to: 20 } } };
  await first.admit(20, { start: "gap", gaps: missing });
  assert.deepEqual(await gaps.next(), { subscription: "s1", reason: "gap", count: 18, gaps: missing });
  first.frame({ first: 20, count: 1 });
  await kept(1);
  first.drop();
  const second = await server.peers.next();
  await second.admit(0, { start: "reset", log: "log-2" });
  assert.deepEqual(await gaps.next(), { subscription: "s1", reason: "reset", count: null });
  second.frame({ first: 0, count: 2 }); // lower offsets than before: they are another log's
  assert.deepEqual(await kept(3), [20, 0, 1]);
});

scenario("starts behind a token, and gives the token of each batch", async ({ server, stream }) => {
  const tokens = new Arrivals<string>();
  stream.subscribe({ topics: ["tick"], from: { resume: "before" } }, (_, { resume }) => tokens.push(resume));
  const peer = await server.peers.next();
  assert.deepEqual((await peer.admit(5))["from"], { resume: "before" });
  peer.frame({ first: 5, count: 1, resume: "behind" });
  assert.equal(await tokens.next(), "behind");
});

scenario("tells of what the server left out", async ({ server, stream, keep, gaps }) => {
  stream.subscribe({ topics: ["tick"] }, keep);
  const peer = await server.peers.next();
  await peer.admit(0);
  peer.frame({ first: 9, count: 1, dropped: 9 });
  assert.deepEqual(await gaps.next(), { subscription: "s1", reason: "policy", count: 9 });
  peer.frame({ dropped: 4 });
  assert.deepEqual(await gaps.next(), { subscription: "s1", reason: "policy", count: 4 });
});

scenario("a dead cursor ends its subscription and is never tried again", async ({ server, stream, keep, errors }) => {
  const dead = stream.subscribe({ topics: ["tick"], from: { cursor: { tick: { "0": -1 } } } }, keep);
  stream.subscribe({ topics: ["tick"] }, keep);
  const first = await server.peers.next();
  await first.welcome();
  await first.expect("subscribe");
  first.send({ op: "error", id: "s1", code: "invalid_field", detail: "no such offset", field: "from" });
  await assert.rejects(dead.ready, { code: "invalid_field" });
  const error = await errors.next();
  assert.deepEqual([error.code, error.more.subscription, error.more.field, error.more.final], ["invalid_field", "s1", "from", true]);
  await first.answer(0);
  first.drop();
  const second = await server.peers.next();
  assert.equal((await second.admit(0))["id"], "s2");
  first.messages.push({ op: "nothing" });
  second.send({ op: "pong" });
  assert.equal(second.messages.size, 0);
  await assert.rejects(dead.update({ maxRate: 1 }), { code: "unsubscribed" });
});

scenario("a server that is busy with others' pasts is asked again when it says so", async ({ server, stream, keep, errors }) => {
  const subscription = stream.subscribe({ topics: ["tick"], from: "earliest" }, keep);
  const peer = await server.peers.next();
  await peer.welcome();
  const refused = await peer.expect("subscribe");
  peer.send({ op: "error", id: refused["id"], code: "too_many_replays", detail: "later", retry_after_s: 0.01 });
  assert.equal((await errors.next()).code, "too_many_replays");
  peer.send({ op: "error", id: (await peer.expect("unsubscribe"))["id"], code: "unknown_id", detail: "no such subscription" });
  const again = await peer.answer(0);
  assert.deepEqual([again["from"], again["id"]], ["earliest", "s1~2"]);
  await subscription.ready;
});

for (const [name, refuse] of [
  ["an error", (send: (message: object) => void) => send({ op: "error", id: null, code: "unauthorized", detail: "no such key" })],
  ["a close code", () => {}],
] as const) {
  scenario(`a refused key stops it: ${name}`, async (scene) => {
    const subscription = scene.stream.subscribe({ topics: ["tick"] }, scene.keep);
    const peer = await scene.server.peers.next();
    await peer.expect("auth");
    refuse((message) => peer.send(message));
    peer.close(4401);
    const closed = await scene.state("closed");
    assert.ok(closed.name === "closed" && closed.reason?.code === "unauthorized");
    await assert.rejects(subscription.ready, { code: "unauthorized" });
    assert.ok(!scene.states.some(({ name }) => name === "waiting"));
    assert.throws(() => scene.stream.subscribe({ topics: ["tick"] }, scene.keep), { code: "closed" });
  });
}

let tokens = 0;
scenario(
  "a token that ran out is renewed once, and a refused new one stops it",
  async (scene) => {
    scene.stream.subscribe({ topics: ["tick"] }, scene.keep);
    const first = await scene.server.peers.next();
    assert.equal((await first.expect("auth"))["api_key"], "token-1");
    first.send({ op: "authenticated" });
    await first.answer(0);
    first.send({ op: "error", id: null, code: "session_ended", detail: "the session has ended" });
    first.close(4401);
    const second = await scene.server.peers.next();
    assert.equal((await second.expect("auth"))["api_key"], "token-2");
    second.close(4401);
    await scene.state("closed");
  },
  { accessToken: () => `token-${(tokens += 1)}`, apiKey: undefined as never },
);

scenario("a connection that an operator ended stays ended", async (scene) => {
  scene.stream.subscribe({ topics: ["tick"] }, scene.keep);
  const peer = await scene.server.peers.next();
  await peer.admit(0);
  peer.send({ op: "closing", code: "disconnected", detail: "by an operator", retry_after_s: 1, log: "log-1", cursors: {} });
  peer.close(4403);
  const closed = await scene.state("closed");
  assert.ok(closed.name === "closed" && closed.reason?.code === "disconnected");
});

scenario("a message that the server finds too big is not sent again", async (scene) => {
  scene.stream.subscribe({ topics: ["tick"] }, scene.keep);
  const peer = await scene.server.peers.next();
  await peer.admit(0);
  peer.close(1009);
  const closed = await scene.state("closed");
  assert.ok(closed.name === "closed" && closed.reason?.detail === "the connection ended (1009)");
});

scenario("a snapshot comes first, and comes again when its connection was lost before its end", async ({ server, stream }) => {
  const got: [bigint[], number | null][] = [];
  const missing: unknown[] = [];
  stream.on("gap", (gap) => missing.push(gap));
  const taken = (count: number) => new Promise<void>((resolve) => (check = () => got.length === count && resolve()));
  let check = () => {};
  const subscription = stream.subscribe({ topics: ["tick"], snapshot: true }, (events, batch) => {
    got.push([events.map(({ offset }) => offset), batch.snapshotLeft]);
    check();
  });
  const first = await server.peers.next();
  assert.equal((await first.admit(40))["snapshot"], true);
  let done = taken(1);
  first.frame({ first: 3, count: 2, snapshotLeft: 1 });
  await done;
  first.drop();
  const second = await server.peers.next();
  const again = await second.admit(44);
  assert.deepEqual([again["snapshot"], again["from"]], [true, "live"]);
  done = taken(4);
  second.frame({ first: 5, count: 2, snapshotLeft: 1 });
  second.frame({ first: 43, count: 1, sequence: 2, snapshotLeft: 0 });
  second.frame({ first: 44, count: 1 });
  await done;
  assert.deepEqual(got, [[[3n, 4n], 1], [[5n, 6n], 1], [[43n], 0], [[44n], null]]);
  assert.deepEqual(subscription.position?.cursor, { tick: { "0": 45 } });
  second.drop();
  const third = await (await server.peers.next()).admit(45);
  assert.deepEqual([third["snapshot"], third["from"]], [undefined, { cursor: { tick: { "0": 45 } }, log: "log-1" }]);
  assert.deepEqual(missing, []);
});

scenario("frames go to the subscription they name, or to the only one", async ({ server, stream }) => {
  const got: string[] = [];
  let third = () => {};
  const onThird = new Promise<void>((resolve) => (third = resolve));
  const keep = (line: string) => got.push(line) === 3 && third();
  const one = stream.subscribe({ topics: ["tick"] }, (events) => keep(`one ${events.length}`));
  const peer = await server.peers.next();
  await peer.admit(0);
  peer.frame({ first: 0, count: 1 });
  const two = stream.subscribe({ topics: ["tick"] }, (events) => keep(`two ${events.length}`));
  await peer.answer(0);
  peer.frame({ first: 0, count: 2, subscription: "s2" });
  peer.frame({ first: 1, count: 3, subscription: "s1" });
  await onThird;
  const gone = one.unsubscribe();
  const { id } = await peer.expect("unsubscribe");
  peer.frame({ first: 4, count: 9, subscription: "s1" });
  peer.send({ op: "unsubscribed", id, dropped: 0 });
  await gone;
  peer.frame({ first: 2, count: 4 });
  const left = two.update({ maxRate: 3 });
  peer.send({ ...(await peer.expect("update")), op: "updated", topics: ["tick"], on_slow: "drop_oldest" });
  await left;
  assert.deepEqual(got, ["one 1", "two 2", "one 3", "two 4"]);
});

scenario("changes terms one after another, also over a lost connection, and forgets what was refused", async ({ server, stream, keep }) => {
  const subscription = stream.subscribe({ topics: ["tick"] }, keep);
  const first = await server.peers.next();
  await first.admit(0);
  await subscription.ready;
  const rate = subscription.update({ maxRate: 5 });
  const filter = subscription.update({ filter: ["nonsense"] });
  assert.deepEqual(await first.expect("update"), { op: "update", id: "s1", max_rate: 5 });
  assert.equal(first.messages.size, 0);
  first.drop();
  const second = await server.peers.next();
  assert.equal((await second.admit(0))["max_rate"], undefined);
  const again = await second.expect("update");
  second.send({ op: "updated", id: again["id"], topics: ["tick"], on_slow: "drop_oldest" });
  await rate;
  const bad = await second.expect("update");
  second.send({ op: "error", id: bad["id"], code: "bad_filter", detail: "no operator" });
  await assert.rejects(filter, { code: "bad_filter" });
  assert.deepEqual(subscription.terms, { topics: ["tick"], maxRate: 5 });
  second.drop();
  const third = await server.peers.next();
  assert.equal((await third.admit(0))["max_rate"], 5);
});

scenario("new topics start where the server says, and left ones are forgotten", async ({ server, stream, keep }) => {
  const subscription = stream.subscribe({ topics: ["tick"] }, keep);
  const peer = await server.peers.next();
  await peer.admit(4);
  const changed = subscription.update({ topics: ["bundle"] });
  const { id } = await peer.expect("update");
  peer.send({ op: "updated", id, topics: ["bundle"], on_slow: "drop_oldest", cursor: { bundle: { "0": 8 } } });
  await changed;
  assert.deepEqual(subscription.position?.cursor, { bundle: { "0": 8 } });
});

scenario("hands events one by one to who iterates, and knows how far that is", async ({ server, stream }) => {
  const subscription = stream.subscribe({ topics: ["tick"] });
  const peer = await server.peers.next();
  await peer.admit(0);
  peer.frame({ first: 0, count: 10 });
  let count = 0;
  for await (const event of subscription) {
    assert.equal(event.message.timestampNs, BigInt(count)); // the type is known to be a tick
    assert.deepEqual(subscription.position?.cursor, { tick: { "0": count } });
    count += 1;
    if (count === 5) break;
    if (count === 4) void peer.expect("unsubscribe").then(({ id }) => peer.send({ op: "unsubscribed", id, dropped: 0 }));
  }
  assert.equal(count, 5);
});

scenario("a lossless consumer that is late leaves the rest with the server, and gets all of it", async ({ server, stream, gaps }) => {
  const subscription = stream.subscribe({ topics: ["tick"], onSlow: "lossless", maxBuffered: 10 });
  const peer = await server.peers.next();
  await peer.admit(0);
  peer.frame({ first: 0, count: 8 });
  peer.frame({ first: 8, count: 8 });
  peer.frame({ first: 16, count: 8 }); // on its way when the client leaves
  peer.send({ op: "unsubscribed", id: (await peer.expect("unsubscribe"))["id"], dropped: 0 });
  const got: number[] = [];
  for await (const { message } of subscription) {
    got.push(Number(message.timestampNs));
    if (got.length === 12) {
      const request = await peer.answer(16);
      assert.deepEqual(request["from"], { cursor: { tick: { "0": 16 } }, log: "log-1" });
      peer.frame({ first: 16, count: 4 });
    }
    if (got.length === 20) stream.close();
  }
  assert.deepEqual(got, range(0, 20));
  assert.equal(gaps.size, 0);
});

scenario("another consumer that is late loses the oldest, and is told", async ({ server, stream, gaps }) => {
  const subscription = stream.subscribe({ topics: ["tick"], maxBuffered: 10 });
  const peer = await server.peers.next();
  await peer.admit(0);
  peer.frame({ first: 0, count: 16 });
  assert.deepEqual(await gaps.next(), { subscription: "s1", reason: "consumer", count: 6 });
  const iterator = subscription[Symbol.asyncIterator]();
  assert.equal((await iterator.next()).value.offset, 6n);
});

scenario("an iteration ends with its stream, and throws what ended it", async ({ server, stream }) => {
  const subscription = stream.subscribe({ topics: ["tick"] });
  const peer = await server.peers.next();
  await peer.expect("auth");
  peer.close(4401);
  await assert.rejects(async () => {
    for await (const _ of subscription);
  }, { code: "unauthorized" });
});

scenario("events it cannot read are reported, and those around them handed over", async ({ server, stream, keep, kept, errors }) => {
  stream.subscribe({ topics: ["tick"] }, keep);
  const peer = await server.peers.next();
  await peer.admit(0);
  peer.frame({ first: 0, values: [new Uint8Array([255, 255])] });
  assert.equal((await errors.next()).code, "undecodable");
  peer.frame({ first: 0, count: 1, topic: "mev.unheard_of.v1" });
  assert.match((await errors.next()).detail, /unheard_of\/0@0: this client does not know/);
  peer.frame({ first: 1, count: 1 });
  assert.deepEqual(await kept(1), [1]);
});

scenario("a handler that fails is reported and called again", async ({ server, stream, errors }) => {
  let calls = 0;
  stream.subscribe({ topics: ["tick"] }, () => {
    calls += 1;
    throw new Error("oops");
  });
  const peer = await server.peers.next();
  await peer.admit(0);
  peer.frame({ first: 0, count: 1 });
  peer.frame({ first: 1, count: 1 });
  for (let n = 0; n < 2; n += 1) assert.equal((await errors.next()).code, "handler");
  assert.equal(calls, 2);
});

scenario("a frame that is none ends the connection, and what it held comes again", async ({ server, stream, keep, kept }) => {
  stream.subscribe({ topics: ["tick"] }, keep);
  const first = await server.peers.next();
  await first.admit(0);
  first.frame({ first: 0, count: 1 });
  first.raw(new Uint8Array([10, 200]));
  first.frame({ first: 9, count: 1 });
  const second = await server.peers.next();
  assert.deepEqual((await second.admit(1))["from"], { cursor: { tick: { "0": 1 } }, log: "log-1" });
  second.frame({ first: 1, count: 1 });
  assert.deepEqual(await kept(2), [0, 1]);
});

scenario(
  "a connection that went silent is replaced",
  async ({ server, stream, keep, errors }) => {
    stream.subscribe({ topics: ["tick"] }, keep);
    const first = await server.peers.next();
    await first.admit(0);
    await first.expect("ping");
    const second = await server.peers.next();
    assert.equal((await errors.next()).code, "silent");
    await second.admit(0);
  },
  { pingMs: 20 },
);

scenario("waits longer after each failure, and never in step with others", async (scene) => {
  scene.stream.subscribe({ topics: ["tick"] }, scene.keep);
  for (let attempt = 0; attempt < 4; attempt += 1) {
    const peer = await scene.server.peers.next();
    await peer.admit(0);
    peer.drop();
  }
  await scene.server.peers.next();
  const delays = scene.states.flatMap((state) => (state.name === "waiting" ? [state] : []));
  assert.deepEqual(delays.slice(0, 4).map(({ attempt }) => attempt), [0, 1, 2, 3]);
  delays.slice(0, 4).forEach(({ delayMs }, attempt) => assert.ok(delayMs <= 2 ** attempt, `${delayMs}`));
}, { backoff: { baseMs: 1, maxMs: 1000 } });

test("a server of another protocol is not taken for one", { timeout: 10_000 }, async () => {
  const server = await FakeServer.start(false);
  const stream = new Stream({ origin: server.origin, apiKey: "key", transport: "websocket", webSocket: WebSocket });
  const error = new Promise<StreamError>((resolve) => stream.on("error", resolve));
  stream.connect();
  assert.equal((await error).code, "connect");
  assert.notEqual(stream.state.name, "open");
  stream.close();
  await server.stop();
});

for (const transport of ["websocket", "webtransport", "auto"] as const) {
  test(`a stream ends where there is no transport for "${transport}"`, { timeout: 10_000 }, async () => {
    const standard = globalThis.WebSocket;
    Reflect.deleteProperty(globalThis, "WebSocket");
    try {
      const stream = new Stream({ origin: "http://127.0.0.1:1", apiKey: "key", transport, backoff: { baseMs: 1, maxMs: 1 } });
      const states: string[] = [];
      const closed = new Promise<StreamError | null>((resolve) =>
        stream.on("state", (state) => {
          states.push(state.name);
          if (state.name === "closed") resolve(state.reason);
        }),
      );
      stream.connect();
      const reason = await closed;
      assert.deepEqual([reason?.code, reason?.more.final], [transport === "webtransport" ? "no_webtransport" : "no_websocket", true]);
      assert.deepEqual(states, ["connecting", "closed"]);
    } finally {
      if (standard) globalThis.WebSocket = standard;
    }
  });
}

test("without a WebSocket, WebTransport that fails is tried again", { timeout: 10_000 }, async () => {
  const standard = globalThis.WebSocket;
  Reflect.deleteProperty(globalThis, "WebSocket");
  class Refusing {
    constructor() {
      throw new Error("no route");
    }
  }
  const stream = new Stream({ origin: "http://127.0.0.1:1", apiKey: "key", backoff: { baseMs: 1, maxMs: 1 }, webTransport: Refusing as any });
  try {
    const attempts = new Promise<number>((resolve) => stream.on("state", (state) => state.name === "waiting" && state.attempt > 2 && resolve(state.attempt)));
    stream.connect();
    assert.equal(await attempts, 3);
  } finally {
    stream.close();
    if (standard) globalThis.WebSocket = standard;
  }
});
