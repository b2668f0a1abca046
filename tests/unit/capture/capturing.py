"""Runs a capture over documents and gives back what it found; finds the recorded data."""

import gzip
import os
from pathlib import Path
from typing import Any

import orjson
import pytest

from mev.capture.model import BadInputError
from mev.capture.service import Capture, CaptureSummary, Event

_RECORDED = Path(__file__).parents[4] / "shared" / "data" / "solana"


class Run:
    """One capture whose events and complaints are kept."""

    def __init__(self, *documents: Any) -> None:
        self.events: list[Event] = []
        self.errors: list[BadInputError] = []
        self.capture = Capture(self.events.extend, report=self.errors.append)
        for document in documents:
            self.capture.document(document)
        self.capture.close()

    @property
    def summary(self) -> CaptureSummary:
        return self.capture.summary

    @property
    def places(self) -> list[str]:
        return [error.place for error in self.errors]


def recorded(name: str) -> Path:
    """Return the path of a recorded file; skip without it, or fail where it is required."""
    path = _RECORDED / name
    if not path.exists():
        reason = f"recorded data is absent: {path}"
        if os.environ.get("MEV_REQUIRE_ALL") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return path


def recorded_lines(name: str) -> list[dict[str, Any]]:
    """Return the JSON lines of a recorded file."""
    with gzip.open(recorded(name)) as lines:
        return [orjson.loads(line) for line in lines]


def recorded_block(name: str) -> dict[str, Any]:
    """Return a recorded block."""
    value: dict[str, Any] = orjson.loads(gzip.decompress(recorded(name).read_bytes()))
    return value
