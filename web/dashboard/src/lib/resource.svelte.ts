// A document of the API that is read again and again while its page is open and visible.
import { untrack } from "svelte";
import { ApiError, get, messageOf } from "./api";
import { clock } from "./clock.svelte";

export class Resource<T> {
  data = $state.raw<T | null>(null);
  error = $state.raw<string | null>(null);
  /** When `data` was received; 0 before. */
  at = $state(0);
  readonly everyMs: number;
  #load: (signal: AbortSignal) => Promise<T>;
  #abort: AbortController | null = null;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #running = false;

  constructor(load: (signal: AbortSignal) => Promise<T>, everyMs: number) {
    this.#load = load;
    this.everyMs = everyMs;
  }

  /** True when the data is older than it should ever be. */
  get stale(): boolean {
    return this.at > 0 && clock.now - this.at > 3 * this.everyMs + 2000;
  }

  start(): void {
    this.#running = true;
    void this.refresh();
  }

  stop(): void {
    this.#running = false;
    clearTimeout(this.#timer);
    this.#abort?.abort();
  }

  /** Read it now. */
  async refresh(): Promise<void> {
    clearTimeout(this.#timer);
    this.#abort?.abort();
    const abort = (this.#abort = new AbortController());
    try {
      const data = await this.#load(abort.signal);
      if (abort.signal.aborted) return;
      this.data = data;
      this.at = Date.now();
      this.error = null;
    } catch (error) {
      if (abort.signal.aborted) return;
      // The banner of the page says when the server cannot be reached.
      this.error = error instanceof ApiError && error.code === "unreachable" && this.data !== null ? null : messageOf(error);
    }
    if (this.#running) this.#timer = setTimeout(() => void this.refresh(), this.everyMs);
  }
}

/** Read what `load` returns every `everyMs` while the component is mounted and the page visible; call during its setup. */
export function poll<T>(load: (signal: AbortSignal) => Promise<T>, everyMs: number): Resource<T> {
  const resource = new Resource(load, everyMs);
  $effect(() => {
    if (!clock.visible) return;
    untrack(() => resource.start());
    return () => resource.stop();
  });
  return resource;
}

/** Read one path of the API every `everyMs`; it is read anew when the path changes, and not while it is null. */
export function pollPath<T>(path: () => string | null, everyMs: number): Resource<T> {
  const resource = new Resource<T>((signal) => get<T>(path() ?? "", signal), everyMs);
  let last: string | null = null;
  $effect(() => {
    const now = path();
    if (!clock.visible || now === null) return;
    untrack(() => {
      if (now !== last) {
        resource.data = null;
        resource.at = 0;
        resource.error = null;
      }
      last = now;
      resource.start();
    });
    return () => resource.stop();
  });
  return resource;
}
