export { EVENT_SCHEMAS, type EventMessage, type EventType, type StreamEvent } from "./events.js";
export { StreamError } from "./errors.js";
export type { Transport } from "./link.js";
export type { Cursor, Delivery, From, Gaps, OnSlow, Position, Subscribed, Terms } from "./messages.js";
export { Stream, type StreamEvents, type StreamOptions, type StreamState } from "./stream.js";
export type { Batch, Gap, Handler, Matching, SubscribeOptions, Subscription } from "./subscription.js";
export type { WebSocketConstructor, WebSocketLike } from "./websocket.js";
