"""Tests of permessage-deflate: negotiation, compression, and malformed data."""

import contextlib
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mev.realtime.link import CloseCode
from mev.realtime.websocket.deflate import inflate, negotiate
from mev.realtime.websocket.protocol import Message, Opcode, Parser, ProtocolError
from tests.unit.realtime.links import client_frame

_COMPRESSED = 0x40
_AGREED = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"


def compressed(payload: bytes) -> bytes:
    compressor = zlib.compressobj(6, zlib.DEFLATED, -15)
    return (compressor.compress(payload) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]


@pytest.mark.parametrize(
    ("offers", "agreed"),
    [
        ("", None),
        ("x-webkit-deflate-frame", None),
        ("permessage-deflate", _AGREED),
        ("permessage-deflate; client_max_window_bits", _AGREED),
        ("permessage-deflate; client_max_window_bits=10; server_no_context_takeover", _AGREED),
        ("permessage-deflate; server_max_window_bits=10", f"{_AGREED}; server_max_window_bits=10"),
        ('permessage-deflate; server_max_window_bits="9"', f"{_AGREED}; server_max_window_bits=9"),
        ("permessage-deflate; server_max_window_bits=8", None),  # zlib cannot
        ("permessage-deflate; server_max_window_bits=8, permessage-deflate", _AGREED),
        ("permessage-deflate; server_max_window_bits=16", None),
        ("permessage-deflate; server_max_window_bits", None),
        ("permessage-deflate; client_max_window_bits=7", None),
        ("permessage-deflate; unknown", None),
        ("permessage-deflate; client_no_context_takeover=1", None),
        ("permessage-deflate; client_max_window_bits; client_max_window_bits", None),
        ("foo, permessage-deflate", _AGREED),
    ],
)
def test_first_offer_that_can_be_accepted_is_agreed_on(offers: str, agreed: str | None) -> None:
    found = negotiate(offers)
    assert (found.header if found else None) == agreed


@pytest.mark.parametrize("bits", ["", "; server_max_window_bits=9"])
@given(
    payload=st.one_of(
        st.binary(max_size=500), st.binary(min_size=1, max_size=40).map(lambda part: part * 300)
    )
)
def test_what_is_compressed_is_read_back_within_the_agreed_window(
    bits: str, payload: bytes
) -> None:
    agreed = negotiate(f"permessage-deflate{bits}")
    assert agreed is not None
    packed = agreed.compress(payload)
    if packed is None:
        assert len(payload) < 128
        return
    window = 9 if bits else 15
    assert zlib.decompressobj(-window).decompress(packed + b"\x00\x00\xff\xff") == payload
    assert inflate(packed, len(payload)) == payload


@given(st.lists(st.tuples(st.text(max_size=200), st.booleans()), max_size=5), st.integers(1, 9))
def test_parser_reads_compressed_and_plain_messages_in_fragments(
    texts: list[tuple[str, bool]], size: int
) -> None:
    parser = Parser(10_000, inflate)
    found = []
    for text, packed in texts:
        payload = compressed(text.encode()) if packed else text.encode()
        parts = [payload[at : at + size] for at in range(0, len(payload), size)] or [b""]
        for number, part in enumerate(parts):
            first = number == 0
            frame = client_frame(
                1 if first else 0,
                part,
                final=number == len(parts) - 1,
                reserved=_COMPRESSED if packed and first else 0,
            )
            found += list(parser.feed(frame))
    assert found == [Message(Opcode.TEXT, text.encode()) for text, _ in texts]


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (client_frame(1, compressed(bytes(2_000_000)), reserved=_COMPRESSED), CloseCode.TOO_BIG),
        (client_frame(1, b"\xff\xff\xff", reserved=_COMPRESSED), CloseCode.INVALID_TEXT),
        (client_frame(1, compressed(b"\xff"), reserved=_COMPRESSED), CloseCode.INVALID_TEXT),
        (client_frame(9, b"", reserved=_COMPRESSED), CloseCode.PROTOCOL_ERROR),
        (
            client_frame(1, b"a", final=False) + client_frame(0, b"b", reserved=_COMPRESSED),
            CloseCode.PROTOCOL_ERROR,
        ),
        (client_frame(1, b"a", reserved=0x20), CloseCode.PROTOCOL_ERROR),
    ],
)
def test_what_breaks_the_agreement_is_refused(frame: bytes, code: CloseCode) -> None:
    with pytest.raises(ProtocolError) as caught:
        list(Parser(1000, inflate).feed(frame))
    assert caught.value.code is code


def test_compressed_frame_without_an_agreement_is_refused() -> None:
    with pytest.raises(ProtocolError) as caught:
        list(Parser(1000).feed(client_frame(1, compressed(b"a"), reserved=_COMPRESSED)))
    assert caught.value.code is CloseCode.PROTOCOL_ERROR


@given(st.lists(st.binary(max_size=60), max_size=10))
def test_any_compressed_bytes_give_a_bounded_message_or_an_error(noise: list[bytes]) -> None:
    parser = Parser(1000, inflate)
    with contextlib.suppress(ProtocolError):
        for part in noise:
            for message in parser.feed(client_frame(2, part, reserved=_COMPRESSED)):
                assert len(message.payload) <= 1000
