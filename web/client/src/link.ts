import type { ClientMessage } from "./messages.js";

export type Transport = "webtransport" | "websocket";

/** Why a link ended; code 0 when the other side said nothing. */
export interface Ended {
  readonly code: number;
  readonly reason: string;
}

/** What a link calls; `finished` is called once, last. */
export interface Receiver {
  control(text: string): void;
  frame(bytes: Uint8Array<ArrayBuffer>): void;
  finished(how: Ended): void;
}

/** A connection to the server that is ready for messages. */
export interface Link {
  readonly transport: Transport;
  send(message: ClientMessage): void;
  close(code: number, reason: string): void;
}

/** Reject when `work` takes longer than `ms`; `late` gets what comes after all. */
export async function within<T>(ms: number, work: Promise<T>, what: string, late: (value: T) => void = () => {}): Promise<T> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  let over = false;
  const expired = new Promise<never>((_, reject) => {
    timer = setTimeout(() => {
      over = true;
      reject(new Error(`${what} took longer than ${ms} ms`));
    }, ms);
  });
  work.then(
    (value) => over && late(value),
    () => {},
  );
  try {
    return await Promise.race([work, expired]);
  } finally {
    clearTimeout(timer);
  }
}
