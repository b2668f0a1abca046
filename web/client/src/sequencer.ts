interface Held<T> {
  readonly sequence: number;
  readonly count: number;
  readonly item: T;
  readonly since: number;
}

export interface SequencerOptions<T> {
  /** Put items in order, and wait for the missing ones; otherwise items pass at once and only losses are found. */
  readonly ordered: boolean;
  /** How long a missing item is waited for. */
  readonly waitMs: number;
  /** How many items may wait behind a hole. */
  readonly maxHeld: number;
  readonly deliver: (item: T) => void;
  /** `count` events did not come in time; return false to have nothing more delivered. */
  readonly lost: (count: number) => boolean;
}

/**
 * Finds holes in what arrives in any order. Each item stands for `count` events, and its sequence number is the number of events
 * before it. Every event is delivered once or reported as lost once; what comes after it was reported is dropped.
 * It has no clock of its own: call `expire` at `deadline`.
 */
export class Sequencer<T> {
  #next = 0;
  #stopped = false;
  /** Totals beyond what came, and since when each is known; ascending. */
  readonly #told: { readonly sequence: number; readonly since: number }[] = [];
  /** Ordered: what waits behind a hole. Otherwise: what passed, remembered to know the holes. By sequence number. */
  readonly #held: Held<T>[] = [];
  /** Items without events that wait behind a hole. */
  #empty: { readonly sequence: number; readonly item: T }[] = [];

  constructor(private readonly options: SequencerOptions<T>) {}

  /** When `expire` has something to do, or null. */
  get deadline(): number | null {
    const since = Math.min(this.#heldSince(), this.#told[0]?.since ?? Infinity);
    return this.#stopped || since === Infinity ? null : since + this.options.waitMs;
  }

  /** Take an item. */
  push(sequence: number, count: number, item: T, now: number): void {
    if (this.#stopped) return;
    if (count === 0) {
      // What it says of the position holds behind everything that was sent before it.
      if (this.options.ordered && sequence > this.#next) this.#empty.push({ sequence, item });
      else this.options.deliver(item);
      this.tell(sequence, now);
      return;
    }
    const at = this.#place(sequence);
    if (sequence < this.#next || this.#held[at]?.sequence === sequence) return; // late, or a repeat
    if (!this.options.ordered) this.options.deliver(item);
    if (sequence === this.#next) {
      this.#next += count;
      if (this.options.ordered) this.options.deliver(item);
      this.#drain();
      return;
    }
    this.#held.splice(at, 0, { sequence, count, item, since: now });
    if (this.#held.length > this.options.maxHeld) this.#skip(this.#held[0]!.sequence);
  }

  /** Learn that `sequence` events were sent so far. */
  tell(sequence: number, now: number): void {
    if (sequence > Math.max(this.#next, this.#told.at(-1)?.sequence ?? 0)) this.#told.push({ sequence, since: now });
  }

  /** Give up what did not come in time. */
  expire(now: number): void {
    for (let deadline = this.deadline; deadline !== null && deadline <= now; deadline = this.deadline) {
      const head = this.#held[0]?.sequence ?? Infinity;
      const known = this.#heldSince() + this.options.waitMs <= now ? head : Math.min(head, this.#toldBefore(now - this.options.waitMs));
      this.#skip(known);
    }
  }

  #heldSince(): number {
    return this.#held.reduce((since, held) => Math.min(since, held.since), Infinity);
  }

  #toldBefore(time: number): number {
    return this.#told.findLast(({ since }) => since <= time)?.sequence ?? this.#next;
  }

  #skip(end: number): void {
    const count = end - this.#next;
    this.#next = end;
    if (this.options.lost(count)) {
      this.#drain();
      return;
    }
    this.#stopped = true;
    this.#held.length = 0;
    this.#empty = [];
  }

  #drain(): void {
    let passed = 0;
    for (const held of this.#held) {
      if (held.sequence > this.#next || this.#stopped) break;
      passed += 1;
      if (held.sequence + held.count <= this.#next) continue;
      this.#next = held.sequence + held.count;
      if (this.options.ordered) this.options.deliver(held.item);
    }
    this.#held.splice(0, passed);
    const open = this.#told.findIndex(({ sequence }) => sequence > this.#next);
    this.#told.splice(0, open === -1 ? this.#told.length : open);
    const due = this.#empty.filter(({ sequence }) => sequence <= this.#next);
    this.#empty = this.#empty.filter(({ sequence }) => sequence > this.#next);
    for (const { item } of due) this.options.deliver(item);
  }

  #place(sequence: number): number {
    let low = 0;
    let high = this.#held.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.#held[middle]!.sequence < sequence) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}
