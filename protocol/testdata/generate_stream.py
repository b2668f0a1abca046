"""Write ``stream.json`` beside this file: frames of the stream, and what they hold."""

import json
import sys
from pathlib import Path
from typing import Any

from mev.wire.frames import Run, encode_frame, encode_positions
from mev.wire.pb.events_pb2 import Tick
from mev.wire.pb.stream_pb2 import Frame

SENT_AT_NS = 1_800_000_000_000_000_000
TICKS, BUNDLES = "mev.tick.v1", "mev.bundle.v1"


def values(count: int) -> list[bytes]:
    """Return events that differ."""
    return [
        Tick(
            market_id=f"m{number}", timestamp_ns=SENT_AT_NS + number, bid_price=1.5
        ).SerializeToString()
        for number in range(count)
    ]


def frame(*runs: Run, resume: str = "", **told: Any) -> bytes:
    """Return a frame as the server sends it: shared bytes, followed by the subscriber's own."""
    told.setdefault("subscription", "s1")
    return encode_frame(runs, SENT_AT_NS, resume) + Frame(**told).SerializeToString()


def frames() -> dict[str, bytes]:
    """Return the frames by name."""
    events = values(4)
    return {
        "contiguous offsets": frame(Run(TICKS, 0, range(10, 14), events), resume="AAAA"),
        "offsets with holes": frame(Run(TICKS, 3, [5, 6, 9, 2**33], events)),
        "first offset 0": frame(Run(TICKS, 0, [0], events[:1])),
        "largest offset": frame(Run(TICKS, 2**31 - 1, [2**63 - 2], events[:1])),
        "two partitions and two topics": frame(
            Run(TICKS, 0, [1, 2], events[:2]),
            Run(TICKS, 1, [7], events[2:3]),
            Run(BUNDLES, 0, [4], [b"\x0a\x01b"]),
        ),
        "published all at once": frame(Run(TICKS, 0, range(4), events, [1_800_000_000_000] * 4)),
        "published one after the other, the clock going back": frame(
            Run(
                TICKS,
                0,
                range(4),
                events,
                [1_800_000_000_000, 1_800_000_000_005, 1_799_999_999_999, 1_800_000_000_100],
            )
        ),
        "empty event": frame(Run(TICKS, 0, [1, 2], [b"", events[0]])),
        "losses and delay": frame(
            Run(TICKS, 0, [1], events[:1]),
            dropped=7,
            dropped_total=2**40,
            queued=3,
            lag_ms=1500,
            sequence=99,
        ),
        "losses alone": frame(dropped=1, dropped_total=1),
        "position of a filter": encode_positions({(TICKS, 0): 5, (TICKS, 1): 0}, SENT_AT_NS, "BBBB")
        + Frame(subscription="s1").SerializeToString(),
        "part of a snapshot": frame(Run(TICKS, 0, [3, 8], events[:2]), snapshot_left=2),
        "end of a snapshot": frame(Run(TICKS, 1, [4], events[:1]), snapshot_left=0),
        "name of 64 characters": frame(Run(TICKS, 0, [1], events[:1]), subscription="é" * 64),
        "fields of a later version": frame(Run(TICKS, 0, [1], events[:1]))
        + b"\xf8\x06\x01\xfa\x06\x03new",
    }


def vectors() -> dict[str, Any]:
    """Return the file's content."""
    good = [
        {"name": name, "frame": data.hex(), "expect": _content(data)}
        for name, data in frames().items()
    ]
    whole = frames()["contiguous offsets"]
    bad = {
        "cut in an event": whole[:40],
        "group": b"\x0b",
        "longer than it is": b"\x0a\x7f\x00",
        "varint without end": b"\x18" + b"\xff" * 11,
    }
    return {
        "frames": good,
        "malformed": [{"name": name, "frame": data.hex()} for name, data in bad.items()],
    }


def _content(data: bytes) -> dict[str, Any]:
    found = Frame.FromString(data)
    return {
        "subscription": found.subscription,
        "sent_at_ns": str(found.sent_at_ns),
        "resume": found.resume,
        "dropped": found.dropped,
        "dropped_total": found.dropped_total,
        "queued": found.queued,
        "lag_ms": found.lag_ms,
        "sequence": found.sequence,
        "snapshot_left": found.snapshot_left if found.HasField("snapshot_left") else None,
        "slices": [_slice(part) for part in found.slices],
    }


def _slice(part: Any) -> dict[str, Any]:
    offset, published_ms, events = part.first_offset, part.first_published_ms, []
    for number, value in enumerate(part.events):
        if number:
            offset += part.offset_step[number - 1] if part.offset_step else 1
            published_ms += part.published_step_ms[number - 1] if part.published_step_ms else 0
        events.append({"offset": str(offset), "published_ms": published_ms, "value": value.hex()})
    following = offset + 1 if events else offset
    return {
        "topic": part.topic,
        "partition": part.partition,
        "next_offset": str(following),
        "events": events,
    }


def main(folder: Path) -> None:
    """Write the file into `folder`."""
    (folder / "stream.json").write_text(json.dumps(vectors(), indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
