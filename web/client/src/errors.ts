/** Why a stream or a subscription cannot do what it was asked; `code` is stable. */
export class StreamError extends Error {
  override readonly name = "StreamError";

  constructor(
    readonly code: string,
    readonly detail: string,
    readonly more: {
      /** The subscription it is about. */
      readonly subscription?: string;
      /** The field of the request that is wrong. */
      readonly field?: string;
      /** When the server may be asked again. */
      readonly retryAfterS?: number;
      /** True when nothing more comes: of the subscription, or of the stream when no subscription is named. */
      readonly final?: boolean;
      readonly cause?: unknown;
    } = {},
  ) {
    super(`${code}: ${detail}`, more.cause === undefined ? undefined : { cause: more.cause });
  }
}

/** Wrap anything that was thrown. */
export function asStreamError(thrown: unknown, code: string): StreamError {
  if (thrown instanceof StreamError) return thrown;
  return new StreamError(code, thrown instanceof Error ? thrown.message : String(thrown), { cause: thrown });
}
