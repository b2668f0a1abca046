import { Backoff } from "./backoff.js";
import { Connection, isRefusal, type Credential, type Outcome } from "./connection.js";
import { Decoder, defaultWorker } from "./decoder.js";
import { Dialer } from "./dial.js";
import { Emitter } from "./emitter.js";
import { asStreamError, StreamError } from "./errors.js";
import type { Transport } from "./link.js";
import { LiveSubscription, type Gap, type Handler, type Host, type SubscribeOptions, type Subscription } from "./subscription.js";
import type { WebSocketConstructor } from "./websocket.js";
import type { WebTransportConstructor } from "./webtransport.js";

type Secret = string | (() => string | Promise<string>);

export interface StreamOptions {
  /** Where the server is, as `https://mev.example.org`; default: where the page came from. */
  readonly origin?: string;
  /** The WebSocket's address, when it is not the usual path of `origin`. */
  readonly url?: string;
  /** One of these says who you are; without one, a page uses its session's cookie, and a WebSocket only. A function is asked at each connection. */
  readonly apiKey?: Secret;
  readonly accessToken?: Secret;
  readonly ticket?: () => string | Promise<string>;
  /** Default `"auto"`: WebTransport, and a WebSocket where that does not work. */
  readonly transport?: "auto" | "webtransport" | "websocket";
  /** Decode in a worker: yes where there are workers (default), never, or in one that you start from `worker.js` of this package. */
  readonly worker?: boolean | (() => Worker);
  readonly connectTimeoutMs?: number;
  /** How long WebTransport may take before a WebSocket is tried; UDP that is blocked gives no answer at all. */
  readonly webTransportTimeoutMs?: number;
  readonly webTransportRetryMs?: number;
  /** How long frames wait for an earlier one that is missing (WebTransport), three times that when lossless; default: as the server tries. */
  readonly reorderMs?: number;
  readonly pingMs?: number;
  readonly backoff?: { readonly baseMs?: number; readonly maxMs?: number };
  /** For environments that lack the standard ones. */
  readonly webSocket?: WebSocketConstructor;
  readonly webTransport?: WebTransportConstructor;
}

export type StreamState =
  | { readonly name: "idle" }
  | { readonly name: "connecting"; readonly attempt: number }
  | { readonly name: "open"; readonly transport: Transport }
  | { readonly name: "waiting"; readonly attempt: number; readonly delayMs: number; readonly reason: StreamError }
  | { readonly name: "closed"; readonly reason: StreamError | null };

export type StreamEvents = {
  state: StreamState;
  /** Events that will not come; nothing is ever missing without this. */
  gap: Gap;
  error: StreamError;
};

const WEBSOCKET_PATH = "/api/realtime/ws";
const MESSAGE_TOO_BIG = 1009;
const DISCONNECTED_BY_OPERATOR = 4403;
const STEADY_MS = 30_000;

/** Subscriptions on one connection, which is opened again, and resumed, whenever it is lost. */
export class Stream extends Emitter<StreamEvents> {
  #state: StreamState = { name: "idle" };
  #connection: Connection | null = null;
  #closed = false;
  #running = false;
  #wake: (() => void) | null = null;
  #names = 0;
  readonly #subscriptions = new Map<string, LiveSubscription>();
  readonly #rejoining = new Map<LiveSubscription, ReturnType<typeof setTimeout>>();
  readonly #decoder: Decoder;
  readonly #dialer: Dialer;
  readonly #backoff: Backoff;
  readonly #timing: { readonly pingMs: number; readonly reorderMs: number };
  readonly #renewable: boolean;

  constructor(options: StreamOptions = {}) {
    super();
    const credential = credentialOf(options);
    this.#renewable = [options.apiKey, options.accessToken, options.ticket].some((given) => typeof given === "function");
    this.#decoder = new Decoder(typeof options.worker === "function" ? options.worker : options.worker === false ? null : defaultWorker());
    this.#backoff = new Backoff(options.backoff?.baseMs ?? 500, options.backoff?.maxMs ?? 30_000);
    this.#timing = { pingMs: options.pingMs ?? 15_000, reorderMs: options.reorderMs ?? 5_000 };
    this.#dialer = new Dialer({
      ...addresses(options),
      // A cookie is not sent over WebTransport.
      transport: credential ? (options.transport ?? "auto") : "websocket",
      connectTimeoutMs: options.connectTimeoutMs ?? 10_000,
      webTransportTimeoutMs: options.webTransportTimeoutMs ?? 3_000,
      webTransportRetryMs: options.webTransportRetryMs ?? 300_000,
      webSocket: options.webSocket ?? (globalThis.WebSocket as typeof globalThis.WebSocket | undefined),
      webTransport: options.webTransport ?? (globalThis.WebTransport as WebTransportConstructor | undefined),
      credential: credential ?? (() => Promise.resolve(null)),
    });
  }

  get state(): StreamState {
    return this.#state;
  }

  /** The transport in use, or null. */
  get transport(): Transport | null {
    return this.#connection?.transport ?? null;
  }

  /** Connect now instead of at the first subscription. */
  connect(): void {
    if (this.#closed) throw new StreamError("closed", "this stream is closed; make another one");
    if (this.#running) return;
    this.#running = true;
    void this.#run();
  }

  /** Ask for events: `handler` gets them by batches; without one, iterate over what is returned. */
  subscribe<const T extends string>(options: SubscribeOptions<T>, handler?: Handler<T>): Subscription<T> {
    const id = options.id ?? `s${(this.#names += 1)}`;
    if (this.#subscriptions.has(id)) throw new StreamError("duplicate_id", `there is a subscription ${id} already`, { subscription: id });
    this.connect();
    const subscription = new LiveSubscription({ ...options, id }, (handler as Handler | undefined) ?? null, this.#host);
    this.#subscriptions.set(id, subscription);
    this.#connection?.join(subscription);
    return subscription as unknown as Subscription<T>;
  }

  /** End everything; iterations end, and nothing more is handed over. */
  close(): void {
    this.#stop(null);
  }

  readonly #host: Host = {
    gap: (gap) => this.emit("gap", gap),
    error: (error) => this.emit("error", error),
    flush: (subscription) => this.#connection?.flush(subscription),
    leave: (subscription) => this.#connection?.leave(subscription) ?? Promise.resolve(),
    rejoin: (subscription, delayMs) => this.#rejoin(subscription, delayMs),
    remove: (subscription) => {
      this.#subscriptions.delete(subscription.id);
      clearTimeout(this.#rejoining.get(subscription));
      this.#rejoining.delete(subscription);
    },
  };

  async #run(): Promise<void> {
    while (!this.#closed) {
      this.#to({ name: "connecting", attempt: this.#backoff.attempt });
      const outcome = await this.#connectOnce();
      if (this.#closed) return;
      const reason = outcome.error ?? endOf(outcome);
      if (this.#isFinal(outcome)) {
        this.#stop(reason);
        return;
      }
      const retryAfterS = outcome.closing?.retry_after_s ?? reason.more.retryAfterS ?? 0;
      const attempt = this.#backoff.attempt;
      const delayMs = this.#backoff.next(retryAfterS);
      this.emit("error", reason);
      this.#to({ name: "waiting", attempt, delayMs, reason });
      await this.#sleep(delayMs);
    }
  }

  /** Open a connection and stay on it until it ends. */
  async #connectOnce(): Promise<Outcome & { readonly wasOpen: boolean }> {
    let connection: Connection;
    try {
      connection = await this.#dialer.dial(
        () => new Connection(this.#decoder, this.#timing, (error) => this.emit("error", error)),
        (error) => this.emit("error", new StreamError("fallback", `going on over a WebSocket: ${error.detail}`, { cause: error })),
      );
    } catch (error) {
      return { code: 0, reason: "", error: asStreamError(error, "connect"), closing: null, wasOpen: false };
    }
    if (this.#closed) connection.close(1000, "");
    const since = performance.now();
    this.#connection = connection;
    this.#to({ name: "open", transport: connection.transport! });
    for (const subscription of this.#subscriptions.values()) {
      if (subscription.wanted && !this.#rejoining.has(subscription)) connection.join(subscription);
    }
    const outcome = await connection.ended;
    this.#connection = null;
    // A connection that brought nothing counts as another failure: what kills it at once must not be repeated quickly.
    if (connection.useful || performance.now() - since > STEADY_MS) this.#backoff.reset();
    return { ...outcome, wasOpen: true };
  }

  #isFinal(outcome: Outcome & { readonly wasOpen: boolean }): boolean {
    if (outcome.code === DISCONNECTED_BY_OPERATOR || outcome.code === MESSAGE_TOO_BIG || outcome.error?.more.final) return true;
    // A credential that was good may have run out; a function may know a new one, which is tried once.
    return isRefusal(outcome.error) && !(outcome.wasOpen && this.#renewable);
  }

  #rejoin(subscription: LiveSubscription, delayMs: number): void {
    void this.#connection?.leave(subscription);
    clearTimeout(this.#rejoining.get(subscription));
    const join = () => {
      this.#rejoining.delete(subscription);
      if (subscription.wanted) this.#connection?.join(subscription);
    };
    this.#rejoining.set(subscription, setTimeout(join, delayMs));
  }

  #stop(reason: StreamError | null): void {
    if (this.#closed) return;
    this.#closed = true;
    const final = reason && new StreamError(reason.code, reason.detail, { ...reason.more, final: true });
    for (const subscription of [...this.#subscriptions.values()]) subscription.end(final);
    this.#connection?.close(1000, "");
    this.#connection = null;
    this.#decoder.close();
    this.#wake?.();
    this.#to({ name: "closed", reason: final });
    if (final) this.emit("error", final);
  }

  #to(state: StreamState): void {
    this.#state = state;
    this.emit("state", state);
  }

  async #sleep(ms: number): Promise<void> {
    await new Promise<void>((resolve) => {
      const timer = setTimeout(resolve, ms);
      this.#wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
    this.#wake = null;
  }
}

function endOf(outcome: Outcome): StreamError {
  const code = outcome.closing?.code ?? "disconnected";
  return new StreamError(code, outcome.closing?.detail ?? (outcome.reason || `the connection ended (${outcome.code})`));
}

function credentialOf(options: StreamOptions): (() => Promise<Credential>) | null {
  const key = options.apiKey ?? options.accessToken;
  if (options.ticket) {
    const { ticket } = options;
    return async () => ({ ticket: await ticket() });
  }
  if (key === undefined) return null;
  return async () => ({ api_key: typeof key === "string" ? key : await key() });
}

function addresses(options: StreamOptions): { origin: string; websocketUrl: string } {
  const page = (globalThis.location as Location | undefined)?.origin;
  const given = options.origin ?? options.url ?? page;
  if (given === undefined) throw new StreamError("no_address", "give `origin` or `url`");
  const origin = new URL(given.replace(/^ws/, "http")).origin;
  const websocketUrl = options.url ?? new URL(WEBSOCKET_PATH, origin).href;
  return { origin, websocketUrl: websocketUrl.replace(/^http/, "ws") };
}
