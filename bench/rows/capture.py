"""A whole block to MEV events, against parsing its JSON."""

import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson

from bench.harness import Clock, Row, RowInput, Sides, SkippedError, rate
from mev.capture.service import Capture


@contextmanager
def _open(setting: RowInput) -> Iterator[Sides]:
    text = _read(setting.block)
    _check(text, setting.block)
    yield Sides(
        lambda: rate(lambda: orjson.loads(text), 1, clock=Clock.CPU, at_least_s=1),
        lambda: rate(lambda: _examine(text), 1, clock=Clock.CPU, at_least_s=1),
    )


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise SkippedError(f"there is no block at {path}; name one with --block")
    content = path.read_bytes()
    return gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content


def _check(text: bytes, path: Path) -> None:
    capture = _examine(text)
    if not capture.summary.transactions or capture.summary.errors:
        raise SkippedError(f"{path} is not a block without faults")


def _examine(text: bytes) -> Capture:
    capture = Capture(lambda _events: None)
    capture.document(orjson.loads(text))
    capture.close()
    return capture


ROW = Row(
    name="capture",
    unit="blocks/s",
    ours="a whole block's JSON text, parsed and searched for events",
    baseline="orjson.loads of the same text",
    clock=Clock.CPU,
    open=_open,
    expected_ratio=0.3,
)
