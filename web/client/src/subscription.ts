import type { ChannelOwner, Request } from "./channel.js";
import type { DecodedFrame, EventType, StreamEvent } from "./events.js";
import { StreamError } from "./errors.js";
import { Inbox } from "./inbox.js";
import type { Transport } from "./link.js";
import type { Cursor, Delivery, From, Gaps, Position, Subscribed, Terms } from "./messages.js";
import { Offsets, offsetsIn } from "./offsets.js";

/** What somebody asks to be sent. */
export interface SubscribeOptions<T extends string = string> extends Terms {
  readonly topics: readonly T[];
  /** Where to start; default `"live"`. */
  readonly from?: From;
  /** First the newest event of each key, then what is live; not with `from`, nor with datagrams. */
  readonly snapshot?: boolean;
  /** Default `"stream"`; datagrams need WebTransport, and are streams over a WebSocket. */
  readonly delivery?: Delivery;
  /** A name of your own, 1 to 48 characters, unique in the stream. */
  readonly id?: string;
  /** How many events may wait for a consumer that iterates; default 50,000. */
  readonly maxBuffered?: number;
}

/** What is beside the events of one frame. */
export interface Batch {
  /** When the server sent it. */
  readonly sentAtNs: bigint;
  /** Events that wait at the server because this subscriber is behind. */
  readonly queued: number;
  /** How long this batch waited for this subscriber. */
  readonly lagMs: number;
  /** Where to go on behind this batch, as a token for `from`; empty for a datagram. */
  readonly resume: string;
  /** In a batch of a snapshot: how many events of it are still to come; 0 in its last batch. Null in other batches. */
  readonly snapshotLeft: number | null;
}

/** The events that topics name: those of the types, or any when there is a pattern. */
export type Matching<T extends string> = [T] extends [EventType] ? StreamEvent<T> : StreamEvent;
export type Handler<T extends string = string> = (events: Matching<T>[], batch: Batch) => void;

/**
 * Events that will not come, and why:
 * - `gap`: the server no longer had them when the subscription was resumed (`gaps` says which offsets);
 * - `reset`: the server's log is another one; all of it follows from its start, and how many events are missing cannot be known;
 * - `policy`: the server left them out, by `onSlow` or `maxRate`;
 * - `network`: they were sent and did not arrive;
 * - `offline`: they were published while a datagram subscription had no connection;
 * - `consumer`: who iterates did not take them in time.
 */
export interface Gap {
  readonly subscription: string;
  readonly reason: "gap" | "reset" | "policy" | "network" | "offline" | "consumer";
  /** How many events, as far as it is known; offsets may count events that the filter would not have let through. */
  readonly count: number | null;
  readonly gaps?: Gaps;
}

/** A running subscription; iterate over it when it was made without a handler. */
export interface Subscription<T extends string = string> extends AsyncIterable<Matching<T>> {
  readonly id: string;
  /** Settled by the server's first answer. */
  readonly ready: Promise<Subscribed>;
  /** Where to go on from, later or elsewhere: behind the last event that was handed over. Null before the first answer. */
  readonly position: Position | null;
  /** The terms that the server confirmed last. */
  readonly terms: Terms;
  /** Change terms while it runs; what is not given stays. */
  update(changes: Partial<Terms>): Promise<Subscribed>;
  unsubscribe(): Promise<void>;
}

/** What a subscription needs of its stream. */
export interface Host {
  gap(gap: Gap): void;
  error(error: StreamError): void;
  /** Send a waiting update, when there is a connection. */
  flush(subscription: LiveSubscription): void;
  /** Leave the channel, when there is one; settled when the server knows. */
  leave(subscription: LiveSubscription): Promise<void>;
  /** Subscribe again after `delayMs`, when there is a connection. */
  rejoin(subscription: LiveSubscription, delayMs: number): void;
  remove(subscription: LiveSubscription): void;
}

interface Update {
  readonly changes: Partial<Terms>;
  readonly resolve: (answer: Subscribed) => void;
  readonly reject: (error: StreamError) => void;
}
class Restart {
  constructor(readonly cursor: Cursor) {}
}

const MAX_RESTARTS = 3;
const MAX_BUFFERED = 50_000;

/** A subscription through all connections of its stream. */
export class LiveSubscription implements Subscription, ChannelOwner {
  readonly id: string;
  readonly ready: Promise<Subscribed>;
  #settle!: { resolve(answer: Subscribed): void; reject(error: StreamError): void };
  #terms: Terms;
  #log: string | undefined;
  #known = false;
  #ended = false;
  #paused = false;
  #restarts = 0;
  /** Whether a snapshot was asked for and has not come whole: then the next connection asks for another one. */
  #lacksSnapshot: boolean;
  readonly #updates: Update[] = [];
  /** Behind what was received, and behind what a consumer that iterates has taken. */
  readonly #received = new Offsets();
  readonly #taken = new Offsets();
  readonly #inbox: Inbox<StreamEvent | Restart> | null;
  readonly #maxBuffered: number;

  constructor(
    private readonly options: SubscribeOptions & { readonly id: string },
    private readonly handler: Handler | null,
    private readonly host: Host,
  ) {
    this.id = options.id;
    this.#terms = termsOf(options);
    this.#maxBuffered = options.maxBuffered ?? MAX_BUFFERED;
    this.#lacksSnapshot = options.snapshot ?? false;
    this.#inbox = handler ? null : new Inbox();
    this.ready = new Promise((resolve, reject) => {
      this.#settle = { resolve, reject };
    });
    this.ready.catch(() => {}); // the error event says it too
  }

  get terms(): Terms {
    return this.#terms;
  }

  get position(): Position | null {
    if (!this.#known) return null;
    const cursor = (this.#inbox ? this.#taken : this.#received).cursor();
    return this.#log === undefined ? { cursor } : { cursor, log: this.#log };
  }

  /** Say whether it wants to be on a connection. */
  get wanted(): boolean {
    return !this.#ended && !this.#paused;
  }

  /** Return what to send as `subscribe`. */
  request(transport: Transport): Request {
    const datagrams = this.options.delivery === "datagram" && transport === "webtransport";
    return { terms: this.#terms, from: this.#from(datagrams), datagrams, snapshot: this.#lacksSnapshot };
  }

  /** The next update to send, if any. */
  get nextUpdate(): Partial<Terms> | undefined {
    return this.#updates[0]?.changes;
  }

  update(changes: Partial<Terms>): Promise<Subscribed> {
    if (this.#ended) return Promise.reject(new StreamError("unsubscribed", "this subscription has ended", { subscription: this.id }));
    const answered = new Promise<Subscribed>((resolve, reject) => this.#updates.push({ changes, resolve, reject }));
    this.host.flush(this);
    return answered;
  }

  async unsubscribe(): Promise<void> {
    if (this.#ended) return;
    this.end(null);
    await this.host.leave(this);
  }

  /** End it: nothing more is handed over. */
  end(error: StreamError | null): void {
    if (this.#ended) return;
    this.#ended = true;
    const why = error ?? new StreamError("unsubscribed", "this subscription has ended", { subscription: this.id });
    this.#settle.reject(why);
    for (const update of this.#updates.splice(0)) update.reject(why);
    this.#inbox?.close(error);
    this.host.remove(this);
  }

  async *[Symbol.asyncIterator](): AsyncIterator<StreamEvent> {
    const inbox = this.#inbox;
    if (!inbox) throw new StreamError("has_handler", "its events go to its handler", { subscription: this.id });
    try {
      for (let item = await inbox.next(); item !== undefined; item = await inbox.next()) {
        if (item instanceof Restart) {
          this.#taken.reset(item.cursor);
          continue;
        }
        yield item;
        this.#taken.advance(item.type, item.partition, Number(item.offset) + 1);
        if (this.#paused && inbox.size * 2 <= this.#maxBuffered) this.#resume();
      }
    } finally {
      await this.unsubscribe();
    }
  }

  // What a channel calls.

  opened(answer: Subscribed): void {
    const cursor = answer.cursor ?? {};
    const missed = this.#known && answer.start === "live" && !this.#lacksSnapshot ? this.#received.until(cursor) : {};
    this.#report(answer, missed);
    this.#received.reset(cursor);
    if (!this.#known) this.#taken.reset(cursor);
    else if (answer.start === "reset") this.#inbox?.push(new Restart(cursor));
    this.#known = true;
    this.#log = answer.log;
    this.#settle.resolve(answer);
    this.host.flush(this);
  }

  updated(answer: Subscribed): void {
    const update = this.#updates.shift();
    this.#terms = { ...this.#terms, ...update?.changes };
    for (const offsets of [this.#received, this.#taken]) {
      offsets.keep(answer.topics);
      for (const [type, partitions] of Object.entries(answer.cursor ?? {})) {
        for (const [partition, next] of Object.entries(partitions)) {
          if (offsets.get(type, partition) === undefined) offsets.advance(type, partition, next);
        }
      }
    }
    update?.resolve(answer);
    this.host.flush(this);
  }

  refused(error: StreamError, what: "subscribe" | "update"): void {
    const more = { ...error.more, subscription: this.id };
    if (what === "update") {
      const update = this.#updates.shift();
      const refusal = new StreamError(error.code, error.detail, more);
      if (update) update.reject(refusal);
      else this.host.error(refusal);
      this.host.flush(this);
      return;
    }
    if (error.more.retryAfterS !== undefined) {
      this.host.error(new StreamError(error.code, error.detail, more));
      this.host.rejoin(this, error.more.retryAfterS * 1000 * (1 + Math.random()));
      return;
    }
    // What was refused once would be refused again; also a cursor.
    const final = new StreamError(error.code, error.detail, { ...more, final: true });
    this.end(final);
    this.host.error(final);
  }

  deliver(frame: DecodedFrame): void {
    if (this.#ended || this.#paused) return;
    this.#restarts = 0;
    this.#reportUndecodable(frame);
    const events = this.#fresh(frame.events);
    for (const { type, partition, next } of frame.steps) this.#received.advance(type, partition, next);
    if (!events.length) return;
    if (this.handler) this.#handle(this.handler, events, frame);
    else this.#store(events);
  }

  snapshot(frame: DecodedFrame): void {
    if (this.#ended || this.#paused) return;
    this.#reportUndecodable(frame);
    if (frame.snapshotLeft === 0) this.#lacksSnapshot = false;
    if (this.handler) this.#handle(this.handler, frame.events, frame);
    else for (const event of frame.events) this.#inbox!.push(event); // the server bounds a snapshot
  }

  missed(count: number): boolean {
    if (this.#ended) return false;
    if (this.#terms.onSlow === "lossless" && this.options.delivery !== "datagram" && this.#restarts < MAX_RESTARTS) {
      // The server still has them: start again behind what came.
      this.#restarts += 1;
      this.host.rejoin(this, 0);
      return false;
    }
    this.host.gap({ subscription: this.id, reason: "network", count });
    return true;
  }

  dropped(count: number): void {
    if (!this.#ended) this.host.gap({ subscription: this.id, reason: "policy", count });
  }

  /** Take over the server's last word on where it stands. */
  closing(cursor: Cursor, log: string | undefined): void {
    if (this.#known && (log === undefined || log === this.#log)) this.#received.merge(cursor);
  }

  #reportUndecodable({ undecodable }: DecodedFrame): void {
    if (!undecodable.length) return;
    const detail = `${undecodable.length} events could not be decoded; the first: ${undecodable[0]}`;
    this.host.error(new StreamError("undecodable", detail, { subscription: this.id }));
  }

  #from(datagrams: boolean): From {
    if (this.#lacksSnapshot) return this.options.from ?? "live";
    if (datagrams) return "live";
    if (!this.#known) return this.options.from ?? "live";
    const cursor = this.#received.cursor();
    return this.#log === undefined ? { cursor } : { cursor, log: this.#log };
  }

  #report(answer: Subscribed, missed: Gaps): void {
    const subscription = this.id;
    if (answer.start === "gap") {
      this.host.gap({ subscription, reason: "gap", count: offsetsIn(answer.gaps ?? {}), gaps: answer.gaps ?? {} });
    } else if (answer.start === "reset") {
      this.host.gap({ subscription, reason: "reset", count: null });
    } else if (Object.keys(missed).length) {
      this.host.gap({ subscription, reason: "offline", count: offsetsIn(missed), gaps: missed });
    }
  }

  /** Leave out what came before; not where the order is not that of offsets. */
  #fresh(events: StreamEvent[]): StreamEvent[] {
    if (this.#terms.onSlow === "conflate" || this.options.delivery === "datagram") return events;
    const isFresh = ({ type, partition, offset }: StreamEvent) => offset >= (this.#received.get(type, partition) ?? 0);
    return events.every(isFresh) ? events : events.filter(isFresh);
  }

  #handle(handler: Handler, events: StreamEvent[], frame: DecodedFrame): void {
    try {
      handler(events, { sentAtNs: frame.sentAtNs, queued: frame.queued, lagMs: frame.lagMs, resume: frame.resume, snapshotLeft: frame.snapshotLeft });
    } catch (cause) {
      this.host.error(new StreamError("handler", `the handler failed: ${String(cause)}`, { subscription: this.id, cause }));
    }
  }

  #store(events: StreamEvent[]): void {
    const inbox = this.#inbox!;
    for (const event of events) inbox.push(event);
    const excess = inbox.size - this.#maxBuffered;
    if (excess <= 0) return;
    if (this.#terms.onSlow === "lossless") {
      // Leave the rest with the server until there is room.
      this.#paused = true;
      void this.host.leave(this);
      return;
    }
    let count = 0;
    for (let left = excess; left > 0; left -= 1) {
      const item = inbox.shift();
      if (item instanceof Restart) this.#taken.reset(item.cursor);
      else count += 1;
    }
    this.host.gap({ subscription: this.id, reason: "consumer", count });
  }

  #resume(): void {
    this.#paused = false;
    this.host.rejoin(this, 0);
  }
}

function termsOf(options: SubscribeOptions): Terms {
  const { topics, filter, onSlow, maxRate } = options;
  return {
    topics,
    ...(filter === undefined ? {} : { filter }),
    ...(onSlow === undefined ? {} : { onSlow }),
    ...(maxRate === undefined ? {} : { maxRate }),
  };
}
