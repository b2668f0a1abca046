import { create, toBinary } from "@bufbuild/protobuf";
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { WebSocketServer, type WebSocket } from "ws";
import { TickSchema } from "../src/gen/mev/v1/events_pb.js";
import { FrameSchema } from "../src/gen/mev/v1/stream_pb.js";

export type Message = Record<string, any>;

/** Values that come one by one, to somebody who may wait for them. */
export class Arrivals<T> {
  readonly #values: T[] = [];
  readonly #waiting: ((value: T) => void)[] = [];

  push(value: T): void {
    const waiting = this.#waiting.shift();
    if (waiting) waiting(value);
    else this.#values.push(value);
  }

  get size(): number {
    return this.#values.length;
  }

  next(): Promise<T> {
    return this.#values.length ? Promise.resolve(this.#values.shift()!) : new Promise((resolve) => this.#waiting.push(resolve));
  }
}

export interface FrameFields {
  partition?: number;
  first?: number;
  count?: number;
  steps?: number[];
  topic?: string;
  values?: Uint8Array[];
  dropped?: number;
  droppedTotal?: number;
  resume?: string;
  published?: number[];
  subscription?: string;
  sequence?: number;
  snapshotLeft?: number;
}

/** Encode a frame of ticks, each with its offset as its time. */
export function tickFrame(fields: FrameFields): Uint8Array<ArrayBuffer> {
  const { first = 0, count = 0, steps = [] } = fields;
  let offset = first;
  const values =
    fields.values ??
    Array.from({ length: count }, (_, index) => {
      if (index > 0) offset += steps[index - 1] ?? 1;
      return toBinary(TickSchema, create(TickSchema, { marketId: "orca:SOL-USDC", timestampNs: BigInt(offset) }));
    });
  const times = fields.published ?? [0];
  const published = { firstPublishedMs: BigInt(times[0]!), publishedStepMs: times.slice(1).map((time, index) => BigInt(time - times[index]!)) };
  const slice = { topic: fields.topic ?? "mev.tick.v1", partition: fields.partition ?? 0, firstOffset: BigInt(first), offsetStep: steps, events: values, ...published };
  const frame = create(FrameSchema, {
    slices: values.length || fields.first !== undefined ? [slice] : [],
    dropped: BigInt(fields.dropped ?? 0),
    droppedTotal: BigInt(fields.droppedTotal ?? 0),
    resume: fields.resume ?? "",
    subscription: fields.subscription ?? "",
    ...(fields.snapshotLeft === undefined ? {} : { snapshotLeft: BigInt(fields.snapshotLeft) }),
    sequence: BigInt(fields.sequence ?? 0),
  });
  return new Uint8Array(toBinary(FrameSchema, frame));
}

/** What answers a `subscribe` for ticks. */
export function subscribed(request: Message, next: number, more: Message = {}): Message {
  const start = request["from"] === "live" ? "live" : "resumed";
  const cursor = { tick: { "0": next } };
  return { op: "subscribed", id: request["id"], topics: ["tick"], filter: [], on_slow: "drop_oldest", max_rate: null, start, log: "log-1", cursor, ...more };
}

/** The server's end of a connection, driven by a test. */
export class Peer {
  readonly messages = new Arrivals<Message>();
  readonly closed = new Arrivals<number>();

  constructor(private readonly socket: WebSocket) {
    socket.on("message", (data) => this.messages.push(JSON.parse(String(data)) as Message));
    socket.on("close", (code) => this.closed.push(code));
  }

  send(message: Message): void {
    this.socket.send(JSON.stringify(message));
  }

  frame(fields: FrameFields): void {
    this.socket.send(tickFrame(fields));
  }

  raw(bytes: Uint8Array): void {
    this.socket.send(bytes);
  }

  close(code: number): void {
    this.socket.close(code);
  }

  drop(): void {
    this.socket.terminate();
  }

  /** Return the next message, which must be of this kind. */
  async expect(op: string): Promise<Message> {
    for (;;) {
      const message = await this.messages.next();
      if (message["op"] === "ping" && op !== "ping") continue;
      if (message["op"] !== op) throw new Error(`expected ${op}, got ${JSON.stringify(message)}`);
      return message;
    }
  }

  async welcome(): Promise<Message> {
    const auth = await this.expect("auth");
    this.send({ op: "authenticated" });
    return auth;
  }

  /** Let the client in and answer its subscription. */
  async admit(next: number, more: Message = {}): Promise<Message> {
    await this.welcome();
    return this.answer(next, more);
  }

  async answer(next: number, more: Message = {}): Promise<Message> {
    const request = await this.expect("subscribe");
    this.send(subscribed(request, next, more));
    return request;
  }
}

/** A WebSocket server in this process; each connection is driven by the test. */
export class FakeServer {
  readonly peers = new Arrivals<Peer>();
  discovery: Message = { enabled: false };
  #sockets: WebSocketServer;

  private constructor(
    private readonly http: Server,
    readonly origin: string,
    protocol: string | false,
  ) {
    this.#sockets = new WebSocketServer({ server: http, path: "/api/realtime/ws", handleProtocols: () => protocol });
    this.#sockets.on("connection", (socket) => this.peers.push(new Peer(socket)));
    http.on("request", (request, response) => {
      response.writeHead(request.url === "/api/realtime/webtransport" ? 200 : 404, { "content-type": "application/json" });
      response.end(JSON.stringify(this.discovery));
    });
  }

  static async start(protocol: string | false = "mev.v1.protobuf"): Promise<FakeServer> {
    const http = createServer();
    await new Promise<void>((resolve) => http.listen(0, "127.0.0.1", resolve));
    return new FakeServer(http, `http://127.0.0.1:${(http.address() as AddressInfo).port}`, protocol);
  }

  async stop(): Promise<void> {
    for (const socket of this.#sockets.clients) socket.terminate();
    this.#sockets.close();
    this.http.closeAllConnections();
    await new Promise((resolve) => this.http.close(resolve));
  }
}
