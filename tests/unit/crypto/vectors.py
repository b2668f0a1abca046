"""The published test vectors, as Python objects."""

import json
from pathlib import Path
from typing import Any

from google.protobuf.message import Message

from mev.wire.pb import audit_pb2, control_pb2, envelope_pb2

FOLDER = Path(__file__).parents[3] / "protocol" / "testdata"


def load(name: str) -> dict[str, Any]:
    """Return the content of a file of vectors."""
    content: dict[str, Any] = json.loads((FOLDER / name).read_text())
    return content


def message_type(name: str) -> type[Message]:
    """Return the message called `name`."""
    for module in (control_pb2, envelope_pb2, audit_pb2):
        if hasattr(module, name):
            found: type[Message] = getattr(module, name)
            return found
    raise LookupError(name)
