import type { DecodedFrame } from "./events.js";
import { StreamError } from "./errors.js";
import type { Transport } from "./link.js";
import { termFields, type ClientMessage, type ErrorMessage, type From, type ServerMessage, type Subscribed, type Terms } from "./messages.js";
import { Sequencer } from "./sequencer.js";

/** The request that a channel makes at its start. */
export interface Request {
  readonly terms: Terms;
  readonly from: From;
  readonly datagrams: boolean;
  readonly snapshot: boolean;
}

/** What a channel tells its subscription. */
export interface ChannelOwner {
  opened(answer: Subscribed): void;
  updated(answer: Subscribed): void;
  refused(error: StreamError, what: "subscribe" | "update"): void;
  deliver(frame: DecodedFrame): void;
  /** Take a part of a snapshot. */
  snapshot(frame: DecodedFrame): void;
  /** Events did not arrive; return false when this channel is done for. */
  missed(count: number): boolean;
  dropped(count: number): void;
}

const MAX_EARLY = 10_000;

/** One subscription on one connection, from `subscribe` until either ends. */
export class Channel {
  #state: "asked" | "open" | "closed" = "asked";
  #updating = false;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #early: DecodedFrame[] = [];
  #dropped = 0;
  #snapshotTaken = 0;
  #snapshotMissing: number;
  readonly #sequencer: Sequencer<DecodedFrame> | null;

  constructor(
    readonly id: string,
    private readonly owner: ChannelOwner,
    private readonly request: Request,
    private readonly link: { readonly transport: Transport; send(message: ClientMessage): void },
    private readonly waitMs: number,
  ) {
    this.#snapshotMissing = request.snapshot ? Infinity : 0;
    const numbered = link.transport === "webtransport";
    this.#sequencer = numbered ? this.#newSequencer(!request.datagrams) : null;
  }

  get idle(): boolean {
    return this.#state === "open" && !this.#updating;
  }

  ask(): void {
    const delivery = this.request.datagrams ? { delivery: "datagram" } : {};
    const snapshot = this.request.snapshot ? { snapshot: true } : {};
    this.link.send({ op: "subscribe", id: this.id, ...termFields(this.request.terms), from: this.request.from, ...delivery, ...snapshot });
  }

  update(changes: Partial<Terms>): void {
    this.#updating = true;
    this.link.send({ op: "update", id: this.id, ...termFields(changes) });
  }

  receive(message: ServerMessage): void {
    if (this.#state === "closed") return;
    switch (message.op) {
      case "subscribed":
        this.#open(message);
        break;
      case "updated":
        this.#updating = false;
        this.owner.updated(message);
        break;
      case "progress":
        this.#noteDropped(message.dropped_total, message.dropped);
        this.#sequencer?.tell(message.sequence, performance.now());
        this.#watch();
        break;
      case "error":
        this.#refused(message);
        break;
    }
  }

  frame(frame: DecodedFrame): void {
    if (this.#state === "closed") return;
    const isOfSnapshot = frame.snapshotLeft !== null;
    if (this.#state === "asked" || (this.#snapshotMissing > 0 && !isOfSnapshot)) {
      // Streams overtake each other: the answer to `subscribe` or the snapshot may come behind other frames. A full store counts as a loss later.
      if (this.#early.length < MAX_EARLY) this.#early.push(frame);
      return;
    }
    if (isOfSnapshot) {
      this.#takeSnapshot(frame, frame.snapshotLeft);
      return;
    }
    if (!this.#sequencer) {
      this.#deliver(frame);
      return;
    }
    this.#sequencer.push(frame.sequence, frame.count, frame, performance.now());
    this.#watch();
  }

  close(): void {
    this.#state = "closed";
    clearTimeout(this.#timer);
    this.#early = [];
  }

  #open(answer: Subscribed): void {
    this.#state = "open";
    this.owner.opened(answer);
    this.#takeEarly();
  }

  #takeEarly(): void {
    for (const frame of this.#early.splice(0)) this.frame(frame);
  }

  #takeSnapshot(frame: DecodedFrame, left: number): void {
    // Parts overtake each other too; each tells how many events are before it and behind it.
    this.#snapshotTaken += frame.count;
    this.#snapshotMissing = frame.sequence + frame.count + left - this.#snapshotTaken;
    this.owner.snapshot({ ...frame, snapshotLeft: this.#snapshotMissing });
    if (this.#snapshotMissing === 0) this.#takeEarly();
  }

  #refused(message: ErrorMessage): void {
    const error = requestError(message, this.id);
    const what = this.#state === "asked" ? "subscribe" : "update";
    this.#updating = false;
    this.owner.refused(error, what);
  }

  #newSequencer(ordered: boolean): Sequencer<DecodedFrame> {
    return new Sequencer({
      ordered,
      // What is lossless is never given up by the server: a missing frame is late rather than lost.
      waitMs: this.request.terms.onSlow === "lossless" ? 3 * this.waitMs : this.waitMs,
      maxHeld: MAX_EARLY,
      deliver: (frame) => this.#state === "open" && this.#deliver(frame),
      lost: (count) => this.owner.missed(count),
    });
  }

  #deliver(frame: DecodedFrame): void {
    this.#noteDropped(frame.droppedTotal, frame.dropped);
    this.owner.deliver(frame);
  }

  /** Report what the server dropped since it was last heard of. A frame that told of a loss may itself be lost; totals make up for it. */
  #noteDropped(total = 0, difference = 0): void {
    const known = this.#dropped;
    this.#dropped = Math.max(known, total || known + difference);
    if (this.#dropped > known) this.owner.dropped(this.#dropped - known);
  }

  #watch(): void {
    if (this.#timer !== undefined || this.#state !== "open") return;
    const deadline = this.#sequencer?.deadline ?? null;
    if (deadline === null) return;
    this.#timer = setTimeout(
      () => {
        this.#timer = undefined;
        this.#sequencer?.expire(performance.now());
        this.#watch();
      },
      Math.max(1, deadline - performance.now()),
    );
  }
}

/** Return what an `error` message of the server says. */
export function requestError(message: ErrorMessage, subscription?: string): StreamError {
  return new StreamError(message.code, message.detail, {
    ...(subscription === undefined ? {} : { subscription }),
    ...(message.field === undefined ? {} : { field: message.field }),
    ...(message.retry_after_s === undefined ? {} : { retryAfterS: message.retry_after_s }),
  });
}
