// What the compiler has to take without a cast; `npm run check` reads it, nothing runs it.
import { WebSocket as WebSocketOfWs } from "ws";
import WebSocketByDefault from "ws";
import { Stream, type StreamOptions } from "@mev/client";

export const options: StreamOptions[] = [
  { webSocket: WebSocketOfWs },
  { webSocket: WebSocketByDefault },
  { webSocket: WebSocket }, // of browsers, and of Node 22
  { webSocket: class extends WebSocketOfWs {} },
];
// @ts-expect-error: something that is no WebSocket is refused
options.push({ webSocket: class {} });
export const streams = options.map((each) => new Stream(each));
