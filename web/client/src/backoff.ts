/** Waiting times between attempts: full jitter, so that clients which lost a server together do not come back together. */
export class Backoff {
  #attempt = 0;

  constructor(
    private readonly baseMs: number,
    private readonly maxMs: number,
    private readonly random: () => number = Math.random,
  ) {}

  /** How many attempts failed since the last success. */
  get attempt(): number {
    return this.#attempt;
  }

  reset(): void {
    this.#attempt = 0;
  }

  /** Return how long to wait now; never less than the server asked for. */
  next(retryAfterS = 0): number {
    const ceiling = Math.min(this.maxMs, this.baseMs * 2 ** Math.min(this.#attempt, 30));
    this.#attempt += 1;
    return retryAfterS * 1000 + this.random() * ceiling;
  }
}
