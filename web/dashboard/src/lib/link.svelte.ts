// The state of the connection to the server: the stream, and whether requests are answered.
import { Stream, type StreamError, type StreamState } from "@mev/client";
import workerUrl from "@mev/client/worker?worker&url";
import { get } from "./api";

interface ScriptUrlPolicy {
  createScriptURL(url: string): unknown;
}
type TrustedTypes = { createPolicy(name: string, rules: { createScriptURL(url: string): string }): ScriptUrlPolicy };

const GRACE_MS = 1500;
const RECHECK_MS = 2000;
const ENDED_BY_SERVER = new Set(["unauthorized", "session_ended", "forbidden"]);

const policy = (globalThis as { trustedTypes?: TrustedTypes }).trustedTypes?.createPolicy("mev-worker", {
  createScriptURL: () => workerUrl,
});

function startWorker(): Worker {
  const url = policy ? policy.createScriptURL("") : workerUrl;
  return new Worker(url as string, { type: "module", name: "mev-decoder" });
}

class Link {
  /** The state of the stream; null before the login. */
  stream = $state.raw<StreamState | null>(null);
  transport = $state<string | null>(null);
  /** Time of the last request to the API, in milliseconds. */
  apiMs = $state<number | null>(null);
  reachable = $state(true);
  /** True when the stream or the API has not answered for longer than a moment. */
  lost = $state(false);
  lostSince = $state(0);
  /** Time from publication to this page, of the newest batch. */
  latencyMs = $state<number | null>(null);
  /** Raised when the server ended the stream for good. */
  disconnected = $state<string | null>(null);
  #client: Stream | null = null;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #check: ReturnType<typeof setTimeout> | undefined;
  #onSessionEnded: () => void = () => {};

  /** The stream of this page. */
  get client(): Stream {
    if (!this.#client) throw new Error("not signed in");
    return this.#client;
  }

  /** Open the stream; `sessionEnded` hears when the server refuses the session. */
  open(sessionEnded: () => void): void {
    this.close();
    this.#onSessionEnded = sessionEnded;
    this.disconnected = null;
    const client = new Stream({ worker: startWorker, transport: "websocket", pingMs: 5000, backoff: { baseMs: 300, maxMs: 5000 } });
    this.#client = client;
    client.on("state", (state) => this.#follow(client, state));
    client.connect();
  }

  close(): void {
    const client = this.#client;
    this.#client = null;
    client?.close();
    clearTimeout(this.#timer);
    clearTimeout(this.#check);
    this.stream = null;
    this.transport = null;
    this.lost = false;
    this.reachable = true;
  }

  answered(tookMs: number): void {
    this.apiMs = tookMs;
    if (this.reachable) return;
    this.reachable = true;
    this.#judge();
  }

  unreachable(): void {
    this.reachable = false;
    this.#judge();
    clearTimeout(this.#check);
    this.#check = setTimeout(() => void get("/api/health/").catch(() => undefined), RECHECK_MS);
  }

  #follow(client: Stream, state: StreamState): void {
    if (client !== this.#client) return;
    this.stream = state;
    this.transport = state.name === "open" ? state.transport : null;
    if (state.name === "closed") this.#ended(state.reason);
    this.#judge();
  }

  #ended(reason: StreamError | null): void {
    if (reason && ENDED_BY_SERVER.has(reason.code)) this.#onSessionEnded();
    else this.disconnected = reason?.detail ?? "the stream was closed";
  }

  /** Say that the connection is lost after a moment of grace, and that it is back at once. */
  #judge(): void {
    const good = this.reachable && (this.#client === null || this.stream?.name === "open");
    clearTimeout(this.#timer);
    if (good) {
      this.lost = false;
      return;
    }
    if (this.lost) return;
    this.#timer = setTimeout(() => {
      this.lost = true;
      this.lostSince = Date.now();
    }, GRACE_MS);
  }
}

export const link = new Link();
