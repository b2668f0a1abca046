// Requests to the API of this server: CSRF token, time limits, problem documents as errors.

export interface Problem {
  readonly status: number;
  readonly code: string;
  readonly detail: string;
  readonly field?: string;
  readonly retry_after_s?: number;
  readonly [member: string]: unknown;
}

/** The API refused a request, or did not answer (status 0, code `unreachable`). */
export class ApiError extends Error {
  override readonly name = "ApiError";

  constructor(readonly problem: Problem) {
    super(problem.detail);
  }

  get status(): number {
    return this.problem.status;
  }

  get code(): string {
    return this.problem.code;
  }
}

export interface Page<T> {
  readonly items: T[];
  readonly next_cursor: string | null;
}

export interface RequestOptions {
  readonly body?: unknown;
  readonly idempotencyKey?: string;
  readonly signal?: AbortSignal;
  readonly timeoutMs?: number;
}

/** Hears of each answer and of each request without one. */
export interface ApiListener {
  answered(tookMs: number): void;
  unreachable(): void;
  sessionEnded(): void;
  /** The CSRF token is refused: say whether there is another one, of the same user. */
  tokenRefused(): Promise<boolean>;
}

const SESSION_CODES = new Set(["unauthorized", "session_ended"]);
let csrf = "";
let listener: ApiListener | null = null;

export function setCsrfToken(token: string): void {
  csrf = token;
}

export function setApiListener(given: ApiListener): void {
  listener = given;
}

/** Return the JSON of an answer; undefined without a body. */
export async function request<T>(method: string, path: string, options: RequestOptions = {}): Promise<T> {
  const response = await send(method, path, options);
  const text = await response.text();
  return (text ? parseJson(text) : undefined) as T;
}

export const get = <T>(path: string, signal?: AbortSignal): Promise<T> => request<T>("GET", path, signal ? { signal } : {});
export const post = <T>(path: string, body?: unknown, options: RequestOptions = {}): Promise<T> => request<T>("POST", path, { ...options, body });

/** Return the text of an answer. */
export async function getText(path: string, signal?: AbortSignal): Promise<string> {
  return (await send("GET", path, signal ? { signal } : {})).text();
}

async function send(method: string, path: string, options: RequestOptions, repeated = false): Promise<Response> {
  const headers: Record<string, string> = { Accept: "application/json, text/plain, */*" };
  if (options.body !== undefined) headers["Content-Type"] = "application/json";
  if (options.idempotencyKey) headers["Idempotency-Key"] = options.idempotencyKey;
  if (method !== "GET" && csrf) headers["X-CSRF-Token"] = csrf;
  const signals = [AbortSignal.timeout(options.timeoutMs ?? 15_000), ...(options.signal ? [options.signal] : [])];
  const begun = performance.now();
  let response: Response;
  try {
    response = await fetch(path, {
      method,
      headers,
      body: options.body === undefined ? null : JSON.stringify(options.body),
      credentials: "same-origin",
      signal: AbortSignal.any(signals),
    });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    listener?.unreachable();
    const timeout = error instanceof DOMException && error.name === "TimeoutError";
    throw new ApiError({
      status: 0,
      code: "unreachable",
      detail: timeout ? "The server did not answer in time." : "The server cannot be reached.",
    });
  }
  listener?.answered(performance.now() - begun);
  if (response.ok) return response;
  const problem = await problemOf(response);
  // The user has signed in again in another tab.
  if (problem.code === "cross_site_request" && !repeated && (await listener?.tokenRefused())) return send(method, path, options, true);
  if (response.status === 401 && SESSION_CODES.has(problem.code)) listener?.sessionEnded();
  throw new ApiError(problem);
}

async function problemOf(response: Response): Promise<Problem> {
  let members: Record<string, unknown> = {};
  try {
    members = (await response.json()) as Record<string, unknown>;
  } catch {
    // A proxy may answer with a page of its own.
  }
  const code = typeof members["code"] === "string" ? members["code"] : `http_${response.status}`;
  const detail = typeof members["detail"] === "string" ? members["detail"] : `The server answered ${response.status} ${response.statusText}.`;
  return { ...members, status: response.status, code, detail };
}

/** Parse JSON; integers that a number cannot hold exactly become bigint. */
export function parseJson(text: string): unknown {
  return JSON.parse(text, function (this: unknown, _key: string, value: unknown, context?: { source?: string }) {
    if (typeof value !== "number" || Number.isSafeInteger(value) || !context?.source) return value;
    return /^-?\d+$/.test(context.source) ? BigInt(context.source) : value;
  } as (key: string, value: unknown) => unknown);
}

/** Return what to show of anything thrown. */
export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/** Return a random key for `Idempotency-Key`. */
export const newKey = (): string => (crypto.randomUUID ? crypto.randomUUID() : [...crypto.getRandomValues(new Uint8Array(16))].join("-"));

/** Load all pages of a list, at most `most` items. */
export async function getAll<T>(path: string, most: number, signal?: AbortSignal): Promise<T[]> {
  const items: T[] = [];
  let cursor: string | null = null;
  do {
    const separator = path.includes("?") ? "&" : "?";
    const page: Page<T> = await get<Page<T>>(cursor ? `${path}${separator}cursor=${encodeURIComponent(cursor)}` : path, signal);
    items.push(...page.items);
    cursor = page.next_cursor;
  } while (cursor && items.length < most);
  return items;
}
