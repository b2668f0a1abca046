"""Compression of WebSocket messages (RFC 7692, permessage-deflate), each on its own.

No context is kept between messages: it would cost 300 KB per connection. Messages of clients are
decompressed up to the maximum message size only.
"""

import re
import zlib

from mev.realtime.link import CloseCode
from mev.realtime.websocket.protocol import ProtocolError

_NAME = "permessage-deflate"
_LEVEL = 1  # higher levels at least double the time for a few per cent
_LEAST_BYTES = 128
_TAIL = b"\x00\x00\xff\xff"
_BITS = re.compile(r"9|1[0-5]")
_CLIENT_BITS = re.compile(r"8|9|1[0-5]")


class Deflate:
    """Negotiated compression parameters; `window_bits` limits the client's memory."""

    def __init__(self, window_bits: int | None) -> None:
        self._window_bits = window_bits or zlib.MAX_WBITS
        limit = f"; server_max_window_bits={window_bits}" if window_bits else ""
        self.header = f"{_NAME}; server_no_context_takeover; client_no_context_takeover{limit}"

    def compress(self, payload: bytes) -> bytes | None:
        """Return `payload` compressed, None if it is too short for that."""
        if len(payload) < _LEAST_BYTES:
            return None
        compressor = zlib.compressobj(_LEVEL, zlib.DEFLATED, -self._window_bits)
        return (compressor.compress(payload) + compressor.flush(zlib.Z_SYNC_FLUSH))[: -len(_TAIL)]


def inflate(payload: bytes, max_size: int) -> bytes:
    """Return a decompressed message.

    :raises ProtocolError: if it is damaged, or has more than `max_size` bytes.
    """
    decompressor = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        found = decompressor.decompress(payload + _TAIL, max_size + 1)
    except zlib.error:
        raise ProtocolError(CloseCode.INVALID_TEXT, "the compressed message is damaged") from None
    if len(found) > max_size:
        raise ProtocolError(CloseCode.TOO_BIG, f"messages may have {max_size} bytes")
    return found


def negotiate(offers: str) -> Deflate | None:
    """Return the first acceptable offer in `Sec-WebSocket-Extensions`, or None."""
    for offer in offers.split(","):
        name, *parameters = (part.strip() for part in offer.split(";"))
        if name == _NAME and (accepted := _accept(parameters)) is not None:
            return accepted
    return None


def _accept(parameters: list[str]) -> Deflate | None:
    given: dict[str, str] = {}
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name in given:
            return None
        given[name] = value.strip('"')
    window_bits = given.pop("server_max_window_bits", None)
    client_bits = given.pop("client_max_window_bits", "")
    flags = (given.pop(f"{side}_no_context_takeover", "") for side in ("server", "client"))
    if any(flags) or given or (client_bits and not _CLIENT_BITS.fullmatch(client_bits)):
        return None
    if window_bits is None:
        return Deflate(None)
    return Deflate(int(window_bits)) if _BITS.fullmatch(window_bits) else None
