"""Tests of the published stream frames with an independent decoder, and with the project's."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import DecodeError

from mev.wire.frames import offsets_of, published_ms_of
from mev.wire.pb.stream_pb2 import Frame

FOLDER = Path(__file__).parents[3] / "protocol" / "testdata"
VECTORS = json.loads((FOLDER / "stream.json").read_text())
GOOD = pytest.mark.parametrize(
    "case", VECTORS["frames"], ids=[case["name"] for case in VECTORS["frames"]]
)


def varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 128:
            return value, at


def fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Yield number and value of each field: an integer or bytes."""
    at = 0
    while at < len(data):
        tag, at = varint(data, at)
        value: Any
        if tag & 7 == 0:
            value, at = varint(data, at)
        elif tag & 7 == 1:
            value, at = int.from_bytes(data[at : at + 8], "little"), at + 8
        else:
            size, at = varint(data, at)
            value, at = data[at : at + size], at + size
        yield tag >> 3, value


def numbers(packed: bytes) -> list[int]:
    found, at = [], 0
    while at < len(packed):
        value, at = varint(packed, at)
        found.append(value)
    return found


def read_slice(data: bytes) -> dict[str, Any]:
    found: dict[int, Any] = {1: b"", 2: 0, 3: 0, 4: b"", 6: 0, 7: b""}
    events: list[bytes] = []
    for number, value in fields(data):
        if number == 5:
            events.append(value)
        else:
            found[number] = value
    steps, times = numbers(found[4]), [step >> 1 ^ -(step & 1) for step in numbers(found[7])]
    offset, published_ms, read = found[3], found[6], []
    for number, value in enumerate(events):
        if number:
            offset += steps[number - 1] if steps else 1
            published_ms += times[number - 1] if times else 0
        read.append({"offset": str(offset), "published_ms": published_ms, "value": value.hex()})
    following = offset + 1 if events else offset
    return {
        "topic": found[1].decode(),
        "partition": found[2],
        "next_offset": str(following),
        "events": read,
    }


def read_frame(data: bytes) -> dict[str, Any]:
    found: dict[int, Any] = {3: 0, 4: 0, 5: 0, 6: b"", 7: 0, 8: b"", 9: 0, 15: None}
    slices = []
    for number, value in fields(data):
        if number == 1:
            slices.append(read_slice(value))
        else:
            found[number] = value  # of a field that comes twice the last one counts
    return {
        "subscription": found[6].decode(),
        "sent_at_ns": str(found[2]),
        "resume": found[8].decode(),
        "dropped": found[3],
        "dropped_total": found[9],
        "queued": found[4],
        "lag_ms": found[5],
        "sequence": found[7],
        "snapshot_left": found[15],
        "slices": slices,
    }


@GOOD
def test_frame_reads_as_published_by_another_decoder(case: dict[str, Any]) -> None:
    assert read_frame(bytes.fromhex(case["frame"])) == case["expect"]


@GOOD
def test_frame_reads_as_published_by_the_project(case: dict[str, Any]) -> None:
    frame = Frame.FromString(bytes.fromhex(case["frame"]))
    for part, expected in zip(frame.slices, case["expect"]["slices"], strict=True):
        events = (
            zip(offsets_of(part), published_ms_of(part), part.events, strict=True)
            if part.events
            else ()
        )
        assert [
            {"offset": str(offset), "published_ms": published_ms, "value": value.hex()}
            for offset, published_ms, value in events
        ] == expected["events"]


@pytest.mark.parametrize(
    "case", VECTORS["malformed"], ids=[case["name"] for case in VECTORS["malformed"]]
)
def test_malformed_frame_is_refused(case: dict[str, str]) -> None:
    with pytest.raises(DecodeError):
        Frame.FromString(bytes.fromhex(case["frame"]))


def test_vectors_are_those_of_their_generator(tmp_path: Path) -> None:
    subprocess.run([sys.executable, FOLDER / "generate_stream.py", tmp_path], check=True)
    assert (tmp_path / "stream.json").read_text() == (FOLDER / "stream.json").read_text()
