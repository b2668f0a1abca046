import assert from "node:assert/strict";
import { test } from "node:test";
import { WebSocket } from "ws";
import { Stream, type Gap, type StreamError, type StreamEvent, type StreamOptions, type StreamState } from "../src/index.js";
import { Arrivals, FakeServer } from "./server.js";

/** A server, a stream to it, and everything the stream said. */
export class Scene {
  readonly gaps = new Arrivals<Gap>();
  readonly errors = new Arrivals<StreamError>();
  readonly states: StreamState[] = [];
  readonly seen: number[] = [];
  readonly stream: Stream;
  #wanted: { readonly count: number; readonly resolve: () => void } | null = null;
  #stateWaiter: { readonly name: string; readonly resolve: (state: StreamState) => void } | null = null;

  constructor(
    readonly server: FakeServer,
    options: StreamOptions,
  ) {
    const fast = { baseMs: 1, maxMs: 5 };
    this.stream = new Stream({ origin: server.origin, apiKey: "key", backoff: fast, webSocket: WebSocket, transport: "websocket", ...options });
    this.stream.on("gap", (gap) => this.gaps.push(gap));
    this.stream.on("error", (error) => this.errors.push(error));
    this.stream.on("state", (state) => {
      this.states.push(state);
      if (this.#stateWaiter?.name === state.name) this.#stateWaiter.resolve(state);
    });
  }

  /** A handler that keeps the seen of ticks, which the fake server makes their offsets. */
  readonly keep = (events: StreamEvent[]): void => {
    for (const event of events) {
      assert.equal(event.type, "tick");
      if (event.type === "tick") this.seen.push(Number(event.message.timestampNs));
      assert.equal(typeof event.offset, "bigint");
    }
    if (this.#wanted && this.seen.length >= this.#wanted.count) this.#wanted.resolve();
  };

  /** Wait until so many events were kept. */
  readonly kept = async (count: number): Promise<number[]> => {
    if (this.seen.length < count) await new Promise<void>((resolve) => (this.#wanted = { count, resolve }));
    return this.seen;
  };

  async state(name: StreamState["name"]): Promise<StreamState> {
    if (this.stream.state.name === name) return this.stream.state;
    return new Promise((resolve) => (this.#stateWaiter = { name, resolve }));
  }
}

/** Run a test with a server and a stream, and end both. */
export function scenario(name: string, body: (scene: Scene) => Promise<void>, options: StreamOptions = {}): void {
  test(name, { timeout: 20_000 }, async () => {
    const server = await FakeServer.start();
    const scene = new Scene(server, options);
    try {
      await body(scene);
    } finally {
      scene.stream.close();
      await server.stop();
    }
  });
}

export function range(from: number, to: number): number[] {
  return Array.from({ length: to - from }, (_, index) => from + index);
}
