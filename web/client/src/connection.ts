import { Channel, requestError } from "./channel.js";
import type { Decoder } from "./decoder.js";
import type { DecodedFrame } from "./events.js";
import { StreamError, asStreamError } from "./errors.js";
import type { Ended, Link, Receiver, Transport } from "./link.js";
import type { ClientMessage, Closing, ServerMessage } from "./messages.js";
import type { LiveSubscription } from "./subscription.js";

export type Credential = { readonly api_key: string } | { readonly ticket: string };

/** How a connection ended, as far as anybody said. */
export interface Outcome extends Ended {
  /** What the server said was wrong, when it did. */
  readonly error: StreamError | null;
  readonly closing: Closing | null;
}

interface Seat {
  channel: Channel | null;
  joined: number;
}

const REFUSED = new Set(["unauthorized", "session_ended", "forbidden"]);
const POLICY = 1008;
const UNAUTHORIZED = 4401;

/** One connection from its link's opening to its end: who is on it, what arrives for whom, and whether it still lives. */
export class Connection implements Receiver {
  readonly ended: Promise<Outcome>;
  #link: Link | null = null;
  #end!: (outcome: Outcome) => void;
  #over = false;
  #broken = false;
  #error: StreamError | null = null;
  #closing: Closing | null = null;
  #heard = true;
  #beat: ReturnType<typeof setInterval> | undefined;
  #welcome: { resolve(): void; reject(error: Error): void } | null = null;
  #frames = 0;
  readonly #seats = new Map<LiveSubscription, Seat>();
  readonly #channels = new Map<string, { readonly channel: Channel; readonly subscription: LiveSubscription }>();
  readonly #leaving = new Map<string, () => void>();
  /** What the server has on this connection, in the order of its answers. */
  readonly #confirmed = new Set<string>();

  constructor(
    private readonly decoder: Decoder,
    private readonly timing: { readonly pingMs: number; readonly reorderMs: number },
    /** Hears of errors that end neither a subscription nor the connection. */
    private readonly notice: (error: StreamError) => void = () => {},
  ) {
    this.ended = new Promise((resolve) => {
      this.#end = resolve;
    });
  }

  get transport(): Transport | null {
    return this.#link?.transport ?? null;
  }

  /** Say whether it brought anything. */
  get useful(): boolean {
    return this.#frames > 0;
  }

  /** Begin on `link`, as whoever the credential says; without one the link itself must have said it. */
  async begin(link: Link, credential: Credential | null): Promise<void> {
    this.#link = link;
    if (credential) {
      const welcomed = new Promise<void>((resolve, reject) => {
        this.#welcome = { resolve, reject };
      });
      link.send({ op: "auth", ...credential });
      await welcomed;
    }
    if (this.#over) throw this.#failure({ code: 0, reason: "" });
    this.#beat = setInterval(() => this.#checkLife(), this.timing.pingMs);
  }

  /** Subscribe; a subscription that is here already starts anew under another name. */
  join(subscription: LiveSubscription): void {
    const link = this.#link;
    if (this.#over || !link) return;
    const seat = this.#seats.get(subscription) ?? { channel: null, joined: 0 };
    this.#seats.set(subscription, seat);
    if (seat.channel) void this.leave(subscription);
    seat.joined += 1;
    const id = seat.joined === 1 ? subscription.id : `${subscription.id}~${seat.joined}`;
    seat.channel = new Channel(id, subscription, subscription.request(link.transport), link, this.timing.reorderMs);
    this.#channels.set(id, { channel: seat.channel, subscription });
    seat.channel.ask();
  }

  /** Unsubscribe; settled when the server confirms it, or can no more. */
  leave(subscription: LiveSubscription): Promise<void> {
    const seat = this.#seats.get(subscription);
    const channel = seat?.channel;
    if (!seat || !channel) return Promise.resolve();
    seat.channel = null;
    channel.close();
    this.#channels.delete(channel.id);
    if (this.#over) return Promise.resolve();
    return new Promise((resolve) => {
      this.#leaving.set(channel.id, resolve);
      this.#send({ op: "unsubscribe", id: channel.id });
    });
  }

  /** Send the subscription's next update, unless one is under way. */
  flush(subscription: LiveSubscription): void {
    const channel = this.#seats.get(subscription)?.channel;
    const changes = subscription.nextUpdate;
    if (channel?.idle && changes) channel.update(changes);
  }

  /** End it from here. */
  close(code: number, reason: string): void {
    this.#link?.close(code, reason);
  }

  // What the link calls. All of it goes through the decoder, so that it stays in order.

  control(text: string): void {
    this.#heard = true;
    this.decoder.pass(() => this.#handle(text));
  }

  frame(bytes: Uint8Array<ArrayBuffer>): void {
    this.#heard = true;
    this.decoder.frame(
      bytes,
      (frame) => this.#deliver(frame),
      (cause) => this.#break(new StreamError("bad_frame", cause)),
    );
  }

  finished(how: Ended): void {
    this.decoder.pass(() => this.#finish(how));
  }

  #handle(text: string): void {
    if (this.#broken) return;
    let message: ServerMessage;
    try {
      message = JSON.parse(text) as ServerMessage;
    } catch (error) {
      this.#break(asStreamError(error, "bad_message"));
      return;
    }
    switch (message.op) {
      case "authenticated":
        this.#welcome?.resolve();
        return;
      case "pong":
        return;
      case "closing":
        this.#close(message);
        return;
      case "unsubscribed":
        this.#left(message.id);
        return;
      case "error":
        if (!this.#toChannel(message)) this.#refused(requestError(message));
        return;
      default:
        if (message.op === "subscribed") this.#confirmed.add(message.id);
        this.#toChannel(message);
    }
  }

  #toChannel(message: ServerMessage & { readonly id?: string | null }): boolean {
    const id = message.id ?? "";
    const found = this.#channels.get(id);
    if (found) found.channel.receive(message);
    else if (message.op === "error" && this.#leaving.has(id)) this.#left(id);
    else return false;
    return true;
  }

  #left(id: string): void {
    this.#confirmed.delete(id);
    this.#leaving.get(id)?.();
    this.#leaving.delete(id);
  }

  #deliver(frame: DecodedFrame): void {
    if (this.#broken) return;
    this.#frames += 1;
    // Without a name there is only one that it can be for.
    const [only] = this.#confirmed;
    this.#channels.get(frame.subscription || (only ?? ""))?.channel.frame(frame);
  }

  #close(message: Closing): void {
    this.#closing = message;
    // Over WebTransport frames may still be on their way; then only what was received counts.
    if (this.#link?.transport !== "websocket") return;
    for (const [id, cursor] of Object.entries(message.cursors ?? {})) this.#channels.get(id)?.subscription.closing(cursor, message.log);
  }

  #refused(error: StreamError): void {
    // Before the welcome, and with one of these codes, the connection's end follows and is told with this reason.
    if (this.#beat === undefined || isRefusal(error) || error.more.retryAfterS !== undefined) this.#fail(error);
    else this.notice(error);
  }

  #fail(error: StreamError): void {
    this.#error = error;
    this.#welcome?.reject(error);
  }

  /** What arrived makes no sense, or was lost: nothing more is taken from this connection. */
  #break(error: StreamError): void {
    if (this.#broken) return;
    this.#broken = true;
    this.#fail(error);
    this.#link?.close(1000, "going to reconnect");
  }

  #finish(how: Ended): void {
    if (this.#over) return;
    this.#over = true;
    clearInterval(this.#beat);
    for (const { channel } of this.#channels.values()) channel.close();
    this.#channels.clear();
    for (const resolve of this.#leaving.values()) resolve();
    this.#leaving.clear();
    const error = this.#error ?? (how.code === UNAUTHORIZED || how.code === POLICY ? this.#failure(how) : null);
    this.#welcome?.reject(error ?? this.#failure(how));
    this.#end({ ...how, error, closing: this.#closing });
  }

  #failure(how: Ended): StreamError {
    if (this.#error) return this.#error;
    const code = how.code === UNAUTHORIZED ? "unauthorized" : how.code === POLICY ? "forbidden" : "disconnected";
    return new StreamError(code, how.reason || `the connection ended (${how.code})`);
  }

  #checkLife(): void {
    if (!this.#heard) {
      this.#error = new StreamError("silent", `nothing was heard for ${2 * this.timing.pingMs} ms`);
      this.#link?.close(1000, "silent");
      return;
    }
    this.#heard = false;
    this.#send({ op: "ping", id: "alive" });
  }

  #send(message: ClientMessage): void {
    this.#link?.send(message);
  }
}

/** Say whether trying again with the same credential is pointless. */
export function isRefusal(error: StreamError | null): boolean {
  return error !== null && REFUSED.has(error.code);
}
