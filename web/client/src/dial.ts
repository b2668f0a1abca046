import type { Connection, Credential } from "./connection.js";
import { isRefusal } from "./connection.js";
import { asStreamError, StreamError } from "./errors.js";
import { within, type Link, type Receiver } from "./link.js";
import { openWebSocket, type WebSocketConstructor } from "./websocket.js";
import { discover, openWebTransport, type WebTransportConstructor } from "./webtransport.js";

export interface DialOptions {
  readonly origin: string;
  readonly websocketUrl: string;
  readonly transport: "auto" | "webtransport" | "websocket";
  readonly connectTimeoutMs: number;
  readonly webTransportTimeoutMs: number;
  /** How long WebTransport is left alone after a WebSocket worked where it did not. */
  readonly webTransportRetryMs: number;
  readonly webSocket: WebSocketConstructor | undefined;
  readonly webTransport: WebTransportConstructor | undefined;
  readonly credential: () => Promise<Credential | null>;
}

/** Opens connections, by WebTransport where it works. */
export class Dialer {
  #avoidUntil = 0;

  constructor(private readonly options: DialOptions) {}

  /** Return a connection that the server has let in; `fallback` hears why it is not WebTransport. An error that is `final` will stay. */
  async dial(create: () => Connection, fallback: (error: StreamError) => void): Promise<Connection> {
    const { transport } = this.options;
    if (transport === "websocket") return this.#websocket(create);
    if (transport === "webtransport") return this.#webtransport(create);
    if (!this.options.webTransport || performance.now() < this.#avoidUntil) return this.#websocket(create);
    let failure: StreamError;
    try {
      return await this.#webtransport(create);
    } catch (error) {
      failure = asStreamError(error, "no_webtransport");
      if (isRefusal(failure) || !this.options.webSocket) throw failure;
    }
    const connection = await this.#websocket(create);
    this.#avoidUntil = performance.now() + this.options.webTransportRetryMs;
    fallback(failure);
    return connection;
  }

  async #webtransport(create: () => Connection): Promise<Connection> {
    const constructor = this.options.webTransport;
    if (!constructor) throw new StreamError("no_webtransport", "there is no WebTransport here; give one as `webTransport`", { final: true });
    const abort = new AbortController();
    const open = async (receiver: Receiver) => {
      const found = await discover(this.options.origin, abort.signal);
      return openWebTransport(found, receiver, constructor, abort.signal);
    };
    return this.#begin(create(), open, this.options.webTransportTimeoutMs, () => abort.abort());
  }

  #websocket(create: () => Connection): Promise<Connection> {
    const constructor = this.options.webSocket;
    if (!constructor) throw new StreamError("no_websocket", "there is no WebSocket here; give one as `webSocket`", { final: true });
    let abandon = () => {};
    const open = (receiver: Receiver) => {
      const opening = openWebSocket(this.options.websocketUrl, receiver, constructor);
      abandon = opening.abandon;
      return opening;
    };
    return this.#begin(create(), open, this.options.connectTimeoutMs, () => abandon());
  }

  async #begin(
    connection: Connection,
    open: (receiver: Receiver) => Promise<Link>,
    timeoutMs: number,
    abandon: () => void,
  ): Promise<Connection> {
    const deadline = performance.now() + timeoutMs;
    try {
      const link = await within(timeoutMs, open(connection), "connecting", (late) => late.close(1000, "too late"));
      const begin = async () => connection.begin(link, await this.options.credential());
      await within(Math.max(1, deadline - performance.now()), begin(), "logging in");
      return connection;
    } catch (error) {
      connection.close(1000, "");
      abandon();
      throw error;
    }
  }
}
