import type { Link, Receiver } from "./link.js";
import type { ClientMessage } from "./messages.js";

export const SUBPROTOCOL = "mev.v1.protobuf";

/** The part of the standard WebSocket that is used here: a browser's, Node's and the one of the package `ws` have it. */
export interface WebSocketLike {
  binaryType: any;
  readonly protocol: string;
  // `any`: the types of these events differ from one WebSocket to the other.
  onopen: ((event: any) => void) | null;
  onmessage: ((event: any) => void) | null;
  onclose: ((event: any) => void) | null;
  onerror: ((event: any) => void) | null;
  send(text: string): void;
  close(code?: number, reason?: string): void;
}
export type WebSocketConstructor = new (url: string, protocols: string[]) => WebSocketLike;

interface Closing {
  readonly code: number;
  readonly reason: string;
}

const ABNORMAL = 1006;
const NO_CODE = 1005;

/** Open a WebSocket; `receiver` is called from then on. */
export function openWebSocket(url: string, receiver: Receiver, constructor: WebSocketConstructor): Promise<Link> & { abandon(): void } {
  const socket = new constructor(url, [SUBPROTOCOL]);
  socket.binaryType = "arraybuffer";
  const opened = new Promise<Link>((resolve, reject) => {
    let link: WebSocketLink | null = null;
    socket.onopen = () => {
      if (socket.protocol !== SUBPROTOCOL) {
        socket.close();
        reject(new Error(`the server does not speak ${SUBPROTOCOL}`));
        return;
      }
      link = new WebSocketLink(socket, receiver);
      resolve(link);
    };
    socket.onerror = () => {};
    socket.onclose = ({ code }: Closing) => reject(new Error(`the WebSocket could not be opened (${code})`));
  });
  return Object.assign(opened, { abandon: () => socket.close() });
}

class WebSocketLink implements Link {
  readonly transport = "websocket";
  #over = false;

  constructor(
    private readonly socket: WebSocketLike,
    private readonly receiver: Receiver,
  ) {
    socket.onmessage = ({ data }: { data: unknown }) => this.#receive(data);
    socket.onclose = ({ code, reason }: Closing) => this.#end(code === ABNORMAL || code === NO_CODE ? 0 : code, reason);
  }

  send(message: ClientMessage): void {
    if (!this.#over) this.socket.send(JSON.stringify(message));
  }

  close(code: number, reason: string): void {
    this.socket.close(code, reason);
    // The other side may be gone, and browsers wait long for its answer.
    this.#end(code, reason);
  }

  #receive(data: unknown): void {
    if (this.#over) return;
    if (typeof data === "string") this.receiver.control(data);
    else this.receiver.frame(new Uint8Array(data as ArrayBuffer));
  }

  #end(code: number, reason: string): void {
    if (this.#over) return;
    this.#over = true;
    this.receiver.finished({ code, reason });
  }
}
