// How far a subscription that begins in the past has come, by partition.
import type { StreamEvent } from "@mev/client";

interface Begun {
  /** Where it begins, by topic and partition. */
  readonly cursor?: Record<string, Record<string, number>>;
  /** What the log had of each partition at that time. */
  readonly positions?: Record<string, Record<string, { readonly latest: number }>>;
}

export class Past {
  /** Whether an event behind the end has come. */
  over = false;
  #begun = false;
  /** The partitions with events that have not come, and the offset behind the last one. */
  readonly #left = new Map<string, number>();
  readonly #seen = new Map<string, number>();

  /** Take the server's answer; the first events may have come before it. */
  begin(answer: Begun): void {
    this.#begun = true;
    for (const [topic, partitions] of Object.entries(answer.positions ?? {}))
      for (const [partition, { latest }] of Object.entries(partitions)) {
        const next = Math.max(answer.cursor?.[topic]?.[partition] ?? 0, this.#seen.get(`${topic}/${partition}`) ?? 0);
        if (next < latest) this.#left.set(`${topic}/${partition}`, latest);
      }
  }

  /** Take an event; `over` says that it is behind the end. */
  take(event: Pick<StreamEvent, "type" | "partition" | "offset">, over: boolean): void {
    const partition = `${event.type}/${event.partition}`;
    const next = over ? Number.MAX_SAFE_INTEGER : Number(event.offset) + 1;
    if (over) this.over = true;
    this.#seen.set(partition, next);
    if (next >= (this.#left.get(partition) ?? Number.MAX_SAFE_INTEGER)) this.#left.delete(partition);
  }

  /** True when every partition was read up to the end. */
  get read(): boolean {
    return this.#begun && this.#left.size === 0;
  }
}
