"""Bodies compressed as HTTP names it."""

import gzip
from collections.abc import Callable

import lz4.frame  # type: ignore[import-untyped]
import zstandard

Codec = Callable[[bytes], bytes]
_COMPRESS: dict[str, Codec] = {
    "lz4": lz4.frame.compress,
    "zstd": zstandard.compress,
    "gzip": gzip.compress,
}
_DECOMPRESS: dict[str, Codec] = {
    "lz4": lz4.frame.decompress,
    "zstd": lambda data: zstandard.ZstdDecompressor().decompressobj().decompress(data),
    "gzip": gzip.decompress,
    "": bytes,
}


class UnknownEncodingError(Exception):
    """A body is compressed by a method that is not spoken here."""


def decode(body: bytes, encoding: str) -> bytes:
    """Return `body` as it was before its Content-Encoding."""
    try:
        return _DECOMPRESS[encoding](body)
    except KeyError:
        raise UnknownEncodingError(f"Unknown HTTP compression method {encoding}") from None


def encode(body: bytes, accepted: str) -> tuple[bytes, str | None]:
    """Return `body` by the first method of Accept-Encoding that is spoken here, and its name."""
    for name in (part.partition(";")[0].strip() for part in accepted.split(",")):
        if name in _COMPRESS:
            return _COMPRESS[name](body), name
    return body, None
