// The live view's subscription: what was received, pausing without loss, and earlier events.
import type { Cursor, StreamEvent, StreamError, Subscription } from "@mev/client";
import { Past } from "./past";
import { Ring } from "./ring";
import { link } from "./link.svelte";

const CAPACITY = 5000;
const MOST_EARLIER = 5000;
const CHUNK = 1000;
const EARLIER_WAIT_MS = 8000;
const QUIET_MS = 1000;
const RESUME_WITHIN_MS = 10 * 60_000;
const WINDOWS_MS = [10_000, 60_000, 600_000, 3_600_000, 86_400_000];
export const LIVE_TYPES = ["opportunity", "arbitrage", "sandwich", "liquidation", "bundle", "tick"] as const;

/** What a subscription could not do, for the field that is wrong. */
export interface Refusal {
  readonly detail: string;
  /** The condition that is wrong, if it is one. */
  readonly position: number | null;
}

class Live {
  readonly ring = new Ring<StreamEvent>(CAPACITY);
  types = $state<string[]>(["opportunity", "arbitrage", "sandwich", "liquidation", "bundle"]);
  filter = $state<string[]>([]);
  /** Start of the view: null for now, or a time. */
  fromTime = $state<string | null>(null);
  /** Raised once for each frame in which something arrived. */
  version = $state(0);
  seen = $state(0);
  lost = $state(0);
  rate = $state(0);
  latencyMs = $state<number | null>(null);
  paused = $state(false);
  refusal = $state<Refusal | null>(null);
  /** Events older than those of the ring, newest first. */
  earlier = $state.raw<StreamEvent[]>([]);
  earlierState = $state<"idle" | "loading" | "end">("idle");
  #subscription: Subscription | null = null;
  #resume: { readonly token: string; readonly atMs: number } | null = null;
  #frame = 0;
  #numbers = 0;
  #received = 0;
  #missing = 0;
  #measured = { atMs: performance.now(), received: 0 };
  #window = 0;
  #opened = 0;
  /** Where the view begins, by topic and partition: what follows comes to the ring. */
  #start: Cursor = {};

  /** Follow the stream while the page is open. */
  open(): () => void {
    const client = link.client;
    const stopGaps = client.on("gap", (gap) => {
      if (gap.subscription === this.#subscription?.id) this.#missing += gap.count ?? 0;
    });
    const timer = setInterval(() => this.#measure(), 1000);
    const recent = this.#resume && Date.now() - this.#resume.atMs < RESUME_WITHIN_MS;
    if (!this.paused) this.#subscribe(recent ? this.#resume!.token : null);
    return () => {
      stopGaps();
      clearInterval(timer);
      cancelAnimationFrame(this.#frame);
      this.#frame = 0;
      this.#leave();
    };
  }

  /** Stop receiving; `resume` goes on exactly here. */
  pause(): void {
    this.paused = true;
    this.#leave();
  }

  resume(): void {
    this.paused = false;
    this.#subscribe(this.#resume?.token ?? null);
  }

  /** Change what is shown; the old view stays when the server refuses the new one. */
  change(changes: { readonly types?: string[]; readonly filter?: string[]; readonly fromTime?: string | null }): void {
    const before = { types: this.types, filter: this.filter, fromTime: this.fromTime };
    if (changes.types) this.types = changes.types;
    if (changes.filter) this.filter = changes.filter;
    if (changes.fromTime !== undefined) this.fromTime = changes.fromTime;
    this.paused = false;
    this.#subscribe(null, before);
  }

  #leave(): void {
    const subscription = this.#subscription;
    this.#subscription = null;
    this.#opened += 1;
    void subscription?.unsubscribe().catch(() => undefined);
  }

  #subscribe(token: string | null, before?: Pick<Live, "types" | "filter" | "fromTime">): void {
    const old = this.#subscription;
    this.refusal = null;
    const opened = (this.#opened += 1);
    if (this.types.length === 0) {
      this.#subscription = null;
      void old?.unsubscribe().catch(() => undefined);
      this.#clear();
      return;
    }
    const from = token ? { from: { resume: token } } : this.fromTime ? { from: { time: this.fromTime } } : {};
    const subscription = link.client.subscribe(
      { id: `live-${(this.#numbers += 1)}`, topics: [...this.types], filter: [...this.filter], ...from },
      (events, batch) => {
        if (opened === this.#opened && this.#subscription !== subscription) this.#replace(subscription, old, token);
        if (this.#subscription === subscription) this.#take(events, batch.resume);
      },
    );
    subscription.ready.then(
      (answer) => {
        if (opened !== this.#opened) return;
        if (this.#subscription !== subscription) this.#replace(subscription, old, token);
        if (!token) this.#start = answer.cursor ?? {};
        if (answer.resume && !token) this.#resume = { token: answer.resume, atMs: Date.now() };
      },
      (error: StreamError) => {
        if (opened !== this.#opened) return;
        // The completion offers the fields that the server lists.
        this.refusal = { detail: (error.detail ?? String(error)).split("; it has ")[0]!, position: positionOf(error) };
        if (before) Object.assign(this, before);
      },
    );
  }

  #replace(subscription: Subscription, old: Subscription | null, token: string | null): void {
    if (!token) this.#clear();
    this.#subscription = subscription;
    if (old && old !== subscription) void old.unsubscribe().catch(() => undefined);
  }

  #clear(): void {
    this.ring.clear();
    this.earlier = [];
    this.earlierState = "idle";
    this.#window = 0;
    this.#received = 0;
    this.#missing = 0;
    this.#measured = { atMs: performance.now(), received: 0 };
    this.#resume = null;
    this.#start = {};
    this.#commit();
  }

  #take(events: readonly StreamEvent[], resume: string): void {
    for (const event of events) this.ring.push(event);
    this.#received += events.length;
    if (resume) this.#resume = { token: resume, atMs: Date.now() };
    const last = events.at(-1);
    if (last) this.#latency(Date.now() - last.publishedMs);
    if (!this.#frame && document.visibilityState === "visible") this.#frame = requestAnimationFrame(() => this.#commit());
  }

  #latest = 0;
  #latency(ms: number): void {
    this.#latest = Math.max(0, ms);
  }

  /** One change of the page for each frame, however many events came. */
  #commit(): void {
    this.#frame = 0;
    this.seen = this.#received;
    this.lost = this.#missing;
    this.version += 1;
  }

  #measure(): void {
    const atMs = performance.now();
    this.rate = ((this.#received - this.#measured.received) * 1000) / (atMs - this.#measured.atMs);
    this.latencyMs = this.#received > this.#measured.received ? this.#latest : this.latencyMs;
    this.#measured = { atMs, received: this.#received };
    if (this.seen !== this.#received || this.lost !== this.#missing) this.#commit();
  }

  /** Read events from before the oldest one here. */
  async loadEarlier(): Promise<void> {
    if (this.earlierState !== "idle" || this.earlier.length >= MOST_EARLIER) return;
    const oldest = this.earlier.at(-1) ?? this.ring.at(this.ring.oldest);
    const edge = oldest?.publishedMs ?? Date.now();
    this.earlierState = "loading";
    const opened = this.#opened;
    const windowMs = WINDOWS_MS[this.#window];
    const from = windowMs === undefined ? ("earliest" as const) : { time: new Date(edge - windowMs).toISOString() };
    const found = await this.#between(from, edge);
    if (opened !== this.#opened) return;
    if (found.length) this.earlier = [...this.earlier, ...found.reverse()].slice(0, MOST_EARLIER);
    if (found.length < CHUNK / 4) this.#window += 1;
    const exhausted = windowMs === undefined && found.length === 0;
    this.earlierState = exhausted || this.earlier.length >= MOST_EARLIER ? "end" : "idle";
    if (!exhausted && found.length === 0) await this.loadEarlier();
  }

  /** Say whether an event comes to the ring, now or later; not once the ring has let events go. */
  #comes(event: StreamEvent): boolean {
    const start = this.#start[event.type]?.[String(event.partition)];
    return this.ring.length < CAPACITY && start !== undefined && event.offset >= BigInt(start);
  }

  /** Return the names of the events here that were published at `ms` or before. */
  #shownUntil(ms: number): Set<string> {
    const found = new Set<string>();
    const add = (event: StreamEvent | undefined) => event && event.publishedMs <= ms && found.add(nameOf(event));
    this.earlier.forEach(add);
    for (let number = this.ring.oldest; number < this.ring.total; number += 1) add(this.ring.at(number));
    return found;
  }

  /** Return the newest events from `from` up to `edge`, at most a chunk. */
  #between(from: "earliest" | { readonly time: string }, edge: number): Promise<StreamEvent[]> {
    return new Promise((resolve) => {
      const kept: StreamEvent[] = [];
      const past = new Past();
      let shown = this.#shownUntil(edge);
      let quiet: ReturnType<typeof setTimeout> | undefined;
      const subscription = link.client.subscribe(
        { id: `earlier-${(this.#numbers += 1)}`, topics: [...this.types], filter: [...this.filter], from, onSlow: "lossless" },
        (events) => {
          for (const event of events) {
            const over = event.publishedMs > edge;
            past.take(event, over);
            if (!over && !shown.has(nameOf(event)) && !this.#comes(event)) kept.push(event);
          }
          if (kept.length > 2 * CHUNK) newest(kept);
          if (past.read) finish();
          else if (past.over) {
            // The filter may hold back what is left of the other partitions.
            clearTimeout(quiet);
            quiet = setTimeout(finish, QUIET_MS);
          }
        },
      );
      const finish = () => {
        clearTimeout(timer);
        clearTimeout(quiet);
        void subscription.unsubscribe().catch(() => undefined);
        shown = this.#shownUntil(edge); // more may have come meanwhile
        resolve(newest(kept.filter((event) => !shown.has(nameOf(event)))));
      };
      const timer = setTimeout(finish, EARLIER_WAIT_MS);
      subscription.ready.then((answer) => {
        past.begin(answer);
        if (past.read) finish();
      }, finish);
    });
  }
}

/** Sort events by time, and keep the newest chunk; partitions come one after the other. */
function newest(events: StreamEvent[]): StreamEvent[] {
  events.sort((a, b) => a.publishedMs - b.publishedMs);
  events.splice(0, events.length - CHUNK);
  return events;
}

const nameOf = (event: StreamEvent): string => `${event.type}/${event.partition}/${event.offset}`;

function positionOf(error: StreamError): number | null {
  const found = /^filter\[(\d+)\]$/.exec(error.more?.field ?? "");
  return found ? Number(found[1]) : null;
}

export const live = new Live();
