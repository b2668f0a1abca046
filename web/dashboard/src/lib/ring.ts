/** The newest items of a sequence, each with its number; it never holds more than `capacity`. */
export class Ring<T> {
  #items: (T | undefined)[];
  #total = 0;
  #start = 0;

  constructor(readonly capacity: number) {
    this.#items = new Array<T | undefined>(capacity);
  }

  /** How many items were ever pushed: the number of the next one. */
  get total(): number {
    return this.#total;
  }

  /** The number of the oldest item that is still here. */
  get oldest(): number {
    return Math.max(this.#start, this.#total - this.capacity);
  }

  get length(): number {
    return this.#total - this.oldest;
  }

  push(item: T): void {
    this.#items[this.#total % this.capacity] = item;
    this.#total += 1;
  }

  /** Return item `number`, or undefined when it is gone or not here yet. */
  at(number: number): T | undefined {
    return number >= this.oldest && number < this.#total ? this.#items[number % this.capacity] : undefined;
  }

  /** Forget the items; numbers go on. */
  clear(): void {
    this.#items = new Array<T | undefined>(this.capacity);
    this.#start = this.#total;
  }
}
