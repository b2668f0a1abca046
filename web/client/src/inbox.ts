/** What waits for a consumer that iterates: first in, first out, with one consumer. */
export class Inbox<T> {
  #items: T[] = [];
  #head = 0;
  #wake: (() => void) | null = null;
  #end: { readonly error: Error | null } | null = null;

  get size(): number {
    return this.#items.length - this.#head;
  }

  push(item: T): void {
    if (this.#end) return;
    this.#items.push(item);
    this.#wake?.();
  }

  /** Remove the oldest item. */
  shift(): T | undefined {
    if (this.size === 0) return undefined;
    const item = this.#items[this.#head];
    this.#head += 1;
    // Cutting off the front now and then costs less than moving everything for each item.
    if (this.#head > 1024 && this.#head * 2 > this.#items.length) {
      this.#items = this.#items.slice(this.#head);
      this.#head = 0;
    }
    return item;
  }

  /** Let the consumer take what is there, and then end, or throw. */
  close(error: Error | null): void {
    this.#end ??= { error };
    this.#wake?.();
  }

  /** Return the next item; undefined at the end. */
  async next(): Promise<T | undefined> {
    while (this.size === 0) {
      if (this.#end?.error) throw this.#end.error;
      if (this.#end) return undefined;
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
      this.#wake = null;
    }
    return this.shift();
  }
}
