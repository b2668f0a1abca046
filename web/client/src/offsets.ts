import type { Cursor, Gaps } from "./messages.js";

/** The next offset of each partition of each event type. */
export class Offsets {
  #next: Cursor = {};

  /** Start anew at `cursor`. */
  reset(cursor: Cursor): void {
    this.#next = copy(cursor);
  }

  get(type: string, partition: number | string): number | undefined {
    return this.#next[type]?.[partition];
  }

  /** Go forward; a position is never taken back. */
  advance(type: string, partition: number | string, next: number): void {
    const partitions = (this.#next[type] ??= {});
    const known = partitions[partition];
    if (known === undefined || known < next) partitions[partition] = next;
  }

  /** Go forward to `cursor` where it is further. */
  merge(cursor: Cursor): void {
    for (const [type, partitions] of Object.entries(cursor)) {
      for (const [partition, next] of Object.entries(partitions)) this.advance(type, partition, next);
    }
  }

  /** Forget event types that are not in `types`. */
  keep(types: readonly string[]): void {
    for (const type of Object.keys(this.#next)) if (!types.includes(type)) delete this.#next[type];
  }

  /** Return what lies between here and `cursor`, where `cursor` is further. */
  until(cursor: Cursor): Gaps {
    const gaps: Gaps = {};
    for (const [type, partitions] of Object.entries(cursor)) {
      for (const [partition, to] of Object.entries(partitions)) {
        const from = this.get(type, partition);
        if (from !== undefined && from < to) (gaps[type] ??= {})[partition] = { from, to };
      }
    }
    return gaps;
  }

  cursor(): Cursor {
    return copy(this.#next);
  }
}

/** Return how many offsets the gaps cover. */
export function offsetsIn(gaps: Gaps): number {
  let count = 0;
  for (const partitions of Object.values(gaps)) for (const { from, to } of Object.values(partitions)) count += to - from;
  return count;
}

function copy(cursor: Cursor): Cursor {
  return Object.fromEntries(Object.entries(cursor).map(([type, partitions]) => [type, { ...partitions }]));
}
