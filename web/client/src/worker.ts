// Runs in a module worker: frames come in as bytes, and go back decoded in the same order.
import { decodeFrame } from "./events.js";
import type { WorkerAnswer } from "./decoder.js";

const scope = self as unknown as { postMessage(answer: WorkerAnswer): void; onmessage: ((event: MessageEvent<Uint8Array>) => void) | null };

scope.onmessage = ({ data }) => {
  try {
    scope.postMessage({ frame: decodeFrame(data) });
  } catch (error) {
    scope.postMessage({ failure: String(error) });
  }
};
scope.postMessage({ ready: true });
