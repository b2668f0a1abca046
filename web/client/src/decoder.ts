import { decodeFrame, type DecodedFrame } from "./events.js";

export type WorkerAnswer = { readonly ready: true } | { readonly frame: DecodedFrame } | { readonly failure: string };
type Entry = { readonly frame: (decoded: DecodedFrame) => void; readonly failed: (cause: string) => void } | { readonly run: () => void };

/**
 * Decodes frames in a worker when there is one, and in place until it is ready or when there is none.
 * Whatever passes through comes out in the order it went in.
 */
export class Decoder {
  #worker: Worker | null = null;
  #ready = false;
  readonly #waiting: Entry[] = [];

  constructor(create: (() => Worker) | null) {
    try {
      this.#worker = create?.() ?? null;
    } catch {
      return; // a page may forbid workers; decoding in place needs none
    }
    if (!this.#worker) return;
    this.#worker.onmessage = ({ data }: MessageEvent<WorkerAnswer>) => this.#answer(data);
    this.#worker.onerror = (event) => {
      event.preventDefault?.();
      this.#lose("the worker failed");
    };
    this.#worker.onmessageerror = () => this.#lose("the worker's answer could not be read");
  }

  /** Say where the next frame is decoded. */
  get inWorker(): boolean {
    return this.#ready;
  }

  /** Decode `bytes`, which are handed over and not usable afterwards. */
  frame(bytes: Uint8Array<ArrayBuffer>, then: (decoded: DecodedFrame) => void, failed: (cause: string) => void): void {
    if (this.#worker && this.#ready) {
      this.#waiting.push({ frame: then, failed });
      this.#worker.postMessage(bytes, [bytes.buffer]);
      return;
    }
    let decoded: DecodedFrame;
    try {
      decoded = decodeFrame(bytes);
    } catch (error) {
      failed(String(error));
      return;
    }
    then(decoded);
  }

  /** Call `run` when everything before it came out. */
  pass(run: () => void): void {
    if (this.#waiting.length) this.#waiting.push({ run });
    else run();
  }

  close(): void {
    this.#worker?.terminate();
    this.#worker = null;
    this.#ready = false;
    for (const entry of this.#waiting.splice(0)) if ("run" in entry) entry.run();
  }

  #answer(answer: WorkerAnswer): void {
    if ("ready" in answer) {
      this.#ready = true;
      return;
    }
    const entry = this.#waiting.shift();
    if (entry && "frame" in entry) {
      if ("frame" in answer) entry.frame(answer.frame);
      else entry.failed(answer.failure);
    }
    this.#flush();
  }

  #flush(): void {
    for (let head = this.#waiting[0]; head && "run" in head; head = this.#waiting[0]) {
      this.#waiting.shift();
      head.run();
    }
  }

  /** Go on in place; the frames that the worker had are lost, and their connections hear of it. */
  #lose(cause: string): void {
    this.#worker?.terminate();
    this.#worker = null;
    this.#ready = false;
    for (const entry of this.#waiting.splice(0)) {
      if ("run" in entry) entry.run();
      else entry.failed(cause);
    }
  }
}

/** Return how to start the worker that is shipped beside this module, or null where there are no workers. */
export function defaultWorker(): (() => Worker) | null {
  if (typeof Worker === "undefined") return null;
  return () => new Worker(new URL("./worker.js", import.meta.url), { type: "module", name: "mev-decoder" });
}
