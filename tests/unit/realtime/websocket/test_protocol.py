import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mev.realtime.link import CloseCode
from mev.realtime.websocket import protocol
from mev.realtime.websocket.protocol import Message, Opcode, Parser, ProtocolError
from tests.unit.realtime.links import client_frame, parse_server_frames

_controls = st.builds(Message, st.sampled_from([Opcode.PING, Opcode.PONG]), st.binary(max_size=125))
_texts = st.builds(Message, st.just(Opcode.TEXT), st.text(max_size=300).map(str.encode))
_binaries = st.builds(
    Message, st.just(Opcode.BINARY), st.one_of(st.binary(max_size=300), st.just(bytes(70_000)))
)


def chunks(data: st.DataObject, encoded: bytes) -> list[bytes]:
    """Cut bytes where a network might."""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(encoded)), max_size=8)))
    return [
        encoded[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(encoded)], strict=True)
    ]


def encode(data: st.DataObject, message: Message) -> list[bytes]:
    """Cut a message into fragments, as a client may."""
    if message.opcode >= Opcode.CLOSE:
        return [
            client_frame(
                message.opcode, message.payload, mask=data.draw(st.binary(min_size=4, max_size=4))
            )
        ]
    parts = chunks(data, message.payload)
    last = len(parts) - 1
    return [
        client_frame(message.opcode if i == 0 else 0, part, final=i == last)
        for i, part in enumerate(parts)
    ]


@given(st.data(), st.lists(st.one_of(_controls, _texts, _binaries), max_size=6))
def test_messages_survive_fragments_masks_and_chunks(
    data: st.DataObject, messages: list[Message]
) -> None:
    encoded = b"".join(frame for message in messages for frame in encode(data, message))
    parser = Parser(100_000)
    assert [
        message for chunk in chunks(data, encoded) for message in parser.feed(chunk)
    ] == messages


@given(st.lists(st.binary(max_size=40), max_size=20))
def test_any_bytes_give_messages_or_a_protocol_error(noise: list[bytes]) -> None:
    parser = Parser(1000)
    with contextlib.suppress(ProtocolError):
        for chunk in [*noise, client_frame(1, b"text"), *noise]:
            for message in parser.feed(chunk):
                assert len(message.payload) <= 1000


def test_a_control_frame_may_come_between_fragments() -> None:
    encoded = client_frame(1, b"he", final=False) + client_frame(9, b"!") + client_frame(0, b"llo")
    assert list(Parser(100).feed(encoded)) == [
        Message(Opcode.PING, b"!"),
        Message(Opcode.TEXT, b"hello"),
    ]


def test_a_character_may_be_cut_between_fragments() -> None:
    euro = "€".encode()
    encoded = client_frame(1, euro[:1], final=False) + client_frame(0, euro[1:])
    assert list(Parser(100).feed(encoded)) == [Message(Opcode.TEXT, euro)]


def is_prefix_of_text(text: bytes) -> bool:
    """Say whether more bytes could make `text` UTF-8: it is, up to an end that lacks bytes."""
    try:
        text.decode()
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data"
    return True


INVALID_TEXTS = {
    "cut character, then another": (
        b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xf4\x90\x80\x80edited"
    ),
    "surrogate": b"\xed\xa0\x80",
    "above U+10FFFF": b"\xf4\x90\x80\x80",
    "overlong slash": b"\xc0\xaf",
    "overlong in 3 bytes": b"\xe0\x80\xaf",
    "overlong in 4 bytes": b"\xf0\x80\x80\xaf",
    "lone continuation byte": b"a\x80",
    "byte that is never used": b"\xfe",
    "five bytes": b"\xf8\x88\x80\x80\x80",
}


@pytest.mark.parametrize("text", INVALID_TEXTS.values(), ids=INVALID_TEXTS)
@pytest.mark.parametrize("fragmented", [True, False])
def test_first_invalid_byte_of_text_is_refused_as_it_arrives(
    text: bytes, *, fragmented: bool
) -> None:
    bad = next(end for end in range(1, len(text) + 1) if not is_prefix_of_text(text[:end]))
    parser = Parser(1000)
    if fragmented:
        parts = [
            client_frame(min(number, 1) ^ 1, text[number : number + 1], final=False)
            for number in range(len(text))
        ]
        before, at = b"".join(parts[: bad - 1]), parts[bad - 1]
    else:
        encoded = client_frame(1, text + b"and so on")
        before, at = encoded[: 6 + bad - 1], encoded[6 + bad - 1 : 6 + bad]
    for byte in before:
        assert list(parser.feed(bytes([byte]))) == []
    assert list(parser.feed(at[:-1])) == []
    with pytest.raises(ProtocolError) as caught:
        list(parser.feed(at[-1:]))
    assert caught.value.code is CloseCode.INVALID_TEXT


@given(st.data(), st.one_of(st.binary(max_size=40), st.text(max_size=20).map(str.encode)))
def test_text_is_refused_exactly_when_it_cannot_become_utf8(
    data: st.DataObject, text: bytes
) -> None:
    parts = chunks(data, text)
    masks = [data.draw(st.binary(min_size=4, max_size=4)) for _ in parts]
    last = len(parts) - 1
    frames = [
        client_frame(1 if i == 0 else 0, part, final=i == last, mask=masks[i])
        for i, part in enumerate(parts)
    ]
    places = [
        place >= len(encoded) - len(part)
        for part, encoded in zip(parts, frames, strict=True)
        for place in range(len(encoded))
    ]
    parser, sent = Parser(1000), 0
    messages: list[Message] = []
    for is_payload, byte in zip(places, b"".join(frames), strict=True):
        sent += is_payload
        try:
            messages += parser.feed(bytes([byte]))
        except ProtocolError as error:
            code: CloseCode | None = error.code
            break
        assert is_prefix_of_text(text[:sent])
    else:
        code = None
    if is_prefix_of_text(text) and not (sent == len(text) and code):
        assert (code, messages) == (None, [Message(Opcode.TEXT, text)])
    else:
        assert (code, messages) == (CloseCode.INVALID_TEXT, [])
        assert sent == len(text) or not is_prefix_of_text(text[:sent])


def test_binary_messages_are_not_checked_and_text_starts_again_after_a_message() -> None:
    parser = Parser(100)
    encoded = (
        client_frame(2, b"\xff", final=False)
        + client_frame(0, b"\xfe")
        + client_frame(1, "\u20ac".encode())
        + client_frame(1, b"x")
    )
    assert [message.payload for byte in encoded for message in parser.feed(bytes([byte]))] == [
        b"\xff\xfe",
        "\u20ac".encode(),
        b"x",
    ]


def test_text_that_ends_inside_a_character_is_refused() -> None:
    parser = Parser(100)
    with pytest.raises(ProtocolError) as caught:
        list(parser.feed(client_frame(1, "\u20ac".encode()[:2])))
    assert caught.value.code is CloseCode.INVALID_TEXT


@pytest.mark.parametrize(
    ("encoded", "code"),
    [
        pytest.param(b"\x81\x02hi", CloseCode.PROTOCOL_ERROR, id="not masked"),
        pytest.param(
            client_frame(1, b"x", reserved=0x40), CloseCode.PROTOCOL_ERROR, id="reserved bit"
        ),
        pytest.param(client_frame(3, b"x"), CloseCode.PROTOCOL_ERROR, id="unknown opcode"),
        pytest.param(
            client_frame(9, b"x", final=False), CloseCode.PROTOCOL_ERROR, id="fragmented ping"
        ),
        pytest.param(client_frame(9, bytes(126)), CloseCode.PROTOCOL_ERROR, id="long ping"),
        pytest.param(client_frame(0, b"x"), CloseCode.PROTOCOL_ERROR, id="continuation of nothing"),
        pytest.param(
            client_frame(1, b"x", final=False) + client_frame(1, b"y"),
            CloseCode.PROTOCOL_ERROR,
            id="message inside a message",
        ),
        pytest.param(
            b"\x81\xfe\x00\x05" + bytes(9), CloseCode.PROTOCOL_ERROR, id="16-bit length not needed"
        ),
        pytest.param(
            b"\x81\xff" + (5).to_bytes(8) + bytes(9),
            CloseCode.PROTOCOL_ERROR,
            id="64-bit length not needed",
        ),
        pytest.param(
            b"\x81\xff" + (2**63).to_bytes(8), CloseCode.PROTOCOL_ERROR, id="64-bit length too long"
        ),
        pytest.param(
            b"\x81\xff" + (2**40).to_bytes(8),
            CloseCode.TOO_BIG,
            id="too big, refused by its header",
        ),
        pytest.param(
            client_frame(1, bytes(60), final=False) + client_frame(0, bytes(60)),
            CloseCode.TOO_BIG,
            id="too big in fragments",
        ),
        pytest.param(client_frame(1, b"\xff"), CloseCode.INVALID_TEXT, id="not UTF-8"),
    ],
)
def test_what_breaks_the_protocol_is_refused(encoded: bytes, code: CloseCode) -> None:
    with pytest.raises(ProtocolError) as caught:
        list(Parser(100).feed(encoded))
    assert caught.value.code is code


@pytest.mark.parametrize("size", [0, 125, 126, 0xFFFF, 0x10000])
def test_headers_can_be_read_back(size: int) -> None:
    (frame,) = parse_server_frames(protocol.frame(Opcode.BINARY, bytes(size)))
    assert (frame.opcode, len(frame.payload)) == (Opcode.BINARY, size)


@given(st.sampled_from([1000, 1011, 4401]), st.text(max_size=200))
def test_close_frames_fit_and_can_be_read_back(code: int, reason: str) -> None:
    (frame,) = parse_server_frames(protocol.close_frame(code, reason))
    assert len(frame.payload) <= 125
    assert protocol.close_code(frame.payload) == code
    assert reason.startswith(frame.payload[2:].decode())


@pytest.mark.parametrize(
    "payload", [b"\x03", b"\x03\xed", b"\x00\x00", b"\x13\x88", b"\x03\xe8\xff"]
)
def test_impossible_close_payloads_are_refused(payload: bytes) -> None:
    with pytest.raises(ProtocolError):
        protocol.close_code(payload)
    assert protocol.close_code(b"") is None
