"""Content codings of request bodies (RFC 9110 8.4): gzip and zstd, decoded within limits."""

import asyncio
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from mev.core.errors import InvalidInputError, MevError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

ACCEPTED_CODINGS = "gzip, zstd"
_PIECE_BYTES = 256 << 10  # decoded in about a millisecond
_INPUT_BYTES = 64 << 10
_MEMBERS = 100  # each is begun at the cost of a copy of the input at hand
_RATIO_FREE_BYTES = 1 << 20  # a body that is small after decoding does no harm, whatever its ratio
_QUOTES_PER_VALUE = 8  # of a member's name and text, and as many escaped ones
_ZSTD_WINDOW_LOG = 23  # RFC 8878 3.1.1.1.2: 8 MiB is what every decoder supports


class UnsupportedCodingError(MevError):
    """The body has a content coding that is not supported."""

    code = "unsupported_content_encoding"
    status = 415


class UndecodableBodyError(InvalidInputError):
    """The body does not match its Content-Encoding."""

    code = "undecodable_body"


class BodyTooLargeError(MevError):
    """The request body is larger than allowed."""

    code = "body_too_large"
    status = 413


class _Decompressor(Protocol):
    """One gzip member or zstd frame."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _GzipMember:
    """zlib's decompressor with the interface of the zstd one: it keeps unused input."""

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(16 + zlib.MAX_WBITS)
        self.needs_input = True

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        piece = self._inner.decompress(self._inner.unconsumed_tail + data, max_length)
        self.needs_input = not self._inner.unconsumed_tail and len(piece) < max_length
        return piece


def _zstd_frame() -> _Decompressor:
    options: dict[int, int] = {zstd.DecompressionParameter.window_log_max: _ZSTD_WINDOW_LOG}
    return zstd.ZstdDecompressor(options=options)


_MEMBER_OF: dict[str, Callable[[], _Decompressor]] = {
    "gzip": _GzipMember,
    "x-gzip": _GzipMember,  # RFC 9110 8.4.1.3: equivalent to gzip
    "zstd": _zstd_frame,
}


def coding_of(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """Return the content coding in `headers`, or None.

    :raises UnsupportedCodingError: if it is not supported, or there is more than one.
    """
    given = ",".join(v.decode("latin-1") for k, v in headers if k == b"content-encoding")
    codings = [token.strip().lower() for token in given.split(",")]
    codings = [coding for coding in codings if coding not in {"", "identity"}]
    if not codings:
        return None
    if len(codings) > 1 or codings[0] not in _MEMBER_OF:
        raise UnsupportedCodingError(
            f"Content-Encoding {given[:80]!r} is not supported; send one of {ACCEPTED_CODINGS}, "
            "or none",
            supported=ACCEPTED_CODINGS.split(", "),
        )
    return codings[0]


async def decode(body: bytes, coding: str, *, limit_bytes: int, max_ratio: float) -> bytes:
    """Return the decoded `body`; yield to the event loop between pieces.

    :raises BodyTooLargeError: as soon as it is known to have more than `limit_bytes`, or more than
        `max_ratio` times its encoded size.
    :raises UndecodableBodyError: if it is truncated, not valid `coding`, or followed by other data.
    """
    pieces, size = [], 0
    try:
        for piece in _pieces(body, _MEMBER_OF[coding]):
            size += len(piece)
            if size > limit_bytes:
                raise too_large(limit_bytes)
            if size > max(_RATIO_FREE_BYTES, max_ratio * len(body)):
                raise BodyTooLargeError(
                    f"the body decodes to more than {max_ratio:g} times its size; "
                    "send it without Content-Encoding"
                )
            pieces.append(piece)
            await asyncio.sleep(0)
    except (zlib.error, zstd.ZstdError) as error:
        raise UndecodableBodyError(f"the body is not {coding}: {error}") from None
    return b"".join(pieces)


def too_large(limit_bytes: int) -> BodyTooLargeError:
    """Return the error for a body of more than `limit_bytes`."""
    return BodyTooLargeError(
        f"the body has more than {limit_bytes} bytes; send it in parts", limit_bytes=limit_bytes
    )


def check_values(body: bytes, limit: int) -> None:
    """Refuse a JSON body with more than `limit` values, before it is parsed.

    Counts commas, brackets and braces outside strings.

    :raises BodyTooLargeError: when the limit is exceeded.
    """
    if _marks(body) <= limit:
        return
    has_few_strings = body.count(b'"') <= _QUOTES_PER_VALUE * limit
    if (
        not has_few_strings
        or _marks(b"".join(body.replace(rb"\\", b"").replace(rb"\"", b"").split(b'"')[::2])) > limit
    ):
        raise BodyTooLargeError(
            f"the body has more than {limit} values (commas, brackets and braces); send fewer",
            limit_values=limit,
        )


def _marks(text: bytes) -> int:
    return text.count(b",") + text.count(b"[") + text.count(b"{")


def _pieces(body: bytes, member_of: Callable[[], _Decompressor]) -> Iterator[bytes]:
    """Yield the decoded members of `body` in pieces."""
    inputs = (body[at : at + _INPUT_BYTES] for at in range(0, len(body), _INPUT_BYTES))
    rest = next(inputs, b"")
    for _ in range(_MEMBERS):
        if not rest:
            return
        member = member_of()
        yield member.decompress(rest, _PIECE_BYTES)
        while not member.eof:
            data = next(inputs, b"") if member.needs_input else b""
            if member.needs_input and not data:
                raise UndecodableBodyError("the body ends before its Content-Encoding does")
            yield member.decompress(data, _PIECE_BYTES)
        rest = member.unused_data or next(inputs, b"")
    if rest:
        raise UndecodableBodyError(
            f"the body has more than {_MEMBERS} parts that were encoded apart"
        )
