import type { Link, Receiver } from "./link.js";
import type { ClientMessage } from "./messages.js";

/** Where the server listens for WebTransport, as it says itself. */
export interface Discovery {
  readonly enabled: boolean;
  readonly url?: string;
  readonly certificate_hashes?: readonly { readonly algorithm: string; readonly value: string }[];
}

export type WebTransportConstructor = new (url: string, options?: WebTransportOptions) => WebTransport;

const DISCOVERY_PATH = "/api/realtime/webtransport";

/** Ask the server for its WebTransport address. */
export async function discover(origin: string, signal: AbortSignal): Promise<Discovery> {
  const answer = await fetch(new URL(DISCOVERY_PATH, origin), { signal, headers: { accept: "application/json" } });
  if (!answer.ok) throw new Error(`${DISCOVERY_PATH} was answered with HTTP ${answer.status}`);
  return (await answer.json()) as Discovery;
}

/** Open a WebTransport session and its control stream; `receiver` is called from then on. */
export async function openWebTransport(
  found: Discovery,
  receiver: Receiver,
  constructor: WebTransportConstructor,
  signal: AbortSignal,
): Promise<Link> {
  if (!found.enabled || !found.url) throw new Error("the server does not offer WebTransport");
  const hashes = (found.certificate_hashes ?? []).map(({ algorithm, value }) => ({
    algorithm,
    value: Uint8Array.from(atob(value), (character) => character.charCodeAt(0)),
  }));
  const session = new constructor(found.url, hashes.length ? { serverCertificateHashes: hashes } : {});
  session.closed.catch(() => {}); // it is heard of below, once there is a link
  signal.addEventListener("abort", () => session.close());
  await session.ready;
  signal.throwIfAborted();
  const control = await session.createBidirectionalStream();
  return new WebTransportLink(session, control, receiver);
}

class WebTransportLink implements Link {
  readonly transport = "webtransport";
  readonly #writer: WritableStreamDefaultWriter<Uint8Array>;
  readonly #encoder = new TextEncoder();
  #over = false;

  constructor(
    private readonly session: WebTransport,
    control: WebTransportBidirectionalStream,
    private readonly receiver: Receiver,
  ) {
    this.#writer = control.writable.getWriter();
    this.#writer.closed.catch(() => {});
    void this.#readControl(control.readable);
    void this.#readFrames(session.incomingUnidirectionalStreams);
    void this.#readDatagrams(session.datagrams.readable);
    session.closed.then(
      (how) => this.#end(how.closeCode ?? 0, how.reason ?? ""),
      (error: unknown) => this.#end(0, String(error)),
    );
  }

  send(message: ClientMessage): void {
    if (!this.#over) this.#writer.write(this.#encoder.encode(`${JSON.stringify(message)}\n`)).catch(() => {});
  }

  close(code: number, reason: string): void {
    try {
      this.session.close({ closeCode: code, reason });
    } catch {
      // it is closed already
    }
    this.#end(code, reason);
  }

  async #readControl(readable: ReadableStream<Uint8Array>): Promise<void> {
    const decoder = new TextDecoder();
    let rest = "";
    try {
      for await (const chunk of chunks(readable)) {
        const lines = (rest + decoder.decode(chunk, { stream: true })).split("\n");
        rest = lines.pop() ?? "";
        for (const line of lines) if (line && !this.#over) this.receiver.control(line);
      }
    } catch {
      // the session ended, and says how
    }
  }

  async #readFrames(streams: ReadableStream<ReadableStream<Uint8Array>>): Promise<void> {
    try {
      for await (const stream of chunks(streams)) void this.#readFrame(stream);
    } catch {
      // the session ended, and says how
    }
  }

  async #readFrame(stream: ReadableStream<Uint8Array>): Promise<void> {
    try {
      const bytes = new Uint8Array(await new Response(stream as BodyInit).arrayBuffer());
      if (!this.#over) this.receiver.frame(bytes);
    } catch {
      // The stream was reset: its events are missed by their sequence numbers.
    }
  }

  async #readDatagrams(readable: ReadableStream<Uint8Array>): Promise<void> {
    try {
      // A copy, because the memory behind a datagram may be shared with others, and a frame is handed over.
      for await (const datagram of chunks(readable)) if (!this.#over) this.receiver.frame(datagram.slice());
    } catch {
      // the session ended, and says how
    }
  }

  #end(code: number, reason: string): void {
    if (this.#over) return;
    this.#over = true;
    this.receiver.finished({ code, reason });
  }
}

async function* chunks<T>(readable: ReadableStream<T>): AsyncGenerator<T> {
  const reader = readable.getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    yield value;
  }
}
