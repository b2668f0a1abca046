// The JSON messages of the protocol, as they are on the wire.

/** Next offset by event type and partition. */
export type Cursor = Record<string, Record<string, number>>;

/** Where a subscription stands in one log of the server; plain JSON, to be kept and given to `from` later. */
export interface Position {
  readonly cursor: Cursor;
  readonly log?: string;
}

/** A token of the server: where to go on behind the message that had it. */
export interface Resume {
  readonly resume: string;
}

export type From = "live" | "earliest" | { readonly time: string } | { readonly slot: number } | Resume | Position;
export type OnSlow = "drop_oldest" | "conflate" | "lossless";
export type Delivery = "stream" | "datagram";

/** Offsets [from, to) that are gone for ever, by event type and partition. */
export type Gaps = Record<string, Record<string, { from: number; to: number }>>;

/** What can be changed while a subscription runs. */
export interface Terms {
  /** Event types, or shell patterns of them (`*`, `?`, `[ab]`). */
  readonly topics: readonly string[];
  /** Conditions that must all hold, as `"profit_lamports >= 1000000"`. */
  readonly filter?: readonly string[];
  readonly onSlow?: OnSlow;
  /** Events a second; null for no limit. */
  readonly maxRate?: number | null;
}

/** The server's answer to a subscription or a change of it. */
export interface Subscribed {
  readonly op: "subscribed" | "updated";
  readonly id: string;
  readonly topics: string[];
  readonly filter?: string[];
  readonly on_slow: OnSlow;
  readonly max_rate?: number | null;
  readonly delivery?: Delivery;
  readonly start?: "live" | "resumed" | "gap" | "reset";
  readonly gaps?: Gaps;
  readonly log?: string;
  readonly cursor?: Cursor;
  /** Where the subscription begins, as a token for `from`. */
  readonly resume?: string;
  readonly positions?: Record<string, Record<string, { earliest: number; latest: number }>>;
}

export interface Closing {
  readonly op: "closing";
  readonly code: string;
  readonly detail?: string;
  readonly retry_after_s?: number | null;
  readonly log?: string;
  readonly cursors?: Record<string, Cursor>;
  readonly resume?: Record<string, string>;
}

export interface ErrorMessage {
  readonly op: "error";
  readonly id?: string | null;
  readonly code: string;
  readonly detail: string;
  readonly field?: string;
  readonly retry_after_s?: number;
}

export type ServerMessage =
  | { readonly op: "authenticated" }
  | Subscribed
  | { readonly op: "unsubscribed"; readonly id: string; readonly dropped: number }
  | { readonly op: "pong"; readonly id?: string }
  | { readonly op: "progress"; readonly id: string; readonly sequence: number; readonly dropped?: number; readonly dropped_total?: number }
  | Closing
  | ErrorMessage;

export type ClientMessage = { readonly op: "auth" | "subscribe" | "update" | "unsubscribe" | "ping" } & Record<string, unknown>;

/** Return the wire's fields of the terms that are given. */
export function termFields(terms: Partial<Terms>): Record<string, unknown> {
  const fields: Record<string, unknown> = {};
  if (terms.topics !== undefined) fields["topics"] = terms.topics;
  if (terms.filter !== undefined) fields["filter"] = terms.filter;
  if (terms.onSlow !== undefined) fields["on_slow"] = terms.onSlow;
  if (terms.maxRate !== undefined) fields["max_rate"] = terms.maxRate;
  return fields;
}
