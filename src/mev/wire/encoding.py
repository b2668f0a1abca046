"""Selection of the code that encodes request bodies: the native module's or Python's."""

from typing import TYPE_CHECKING

from mev.core import native
from mev.wire.codec import Encoder
from mev.wire.registry import EventType
from mev.wire.times import TimeBounds

if TYPE_CHECKING:
    from mev.wire.native_codec import NativeEncoder


def encoder(
    event: EventType, *, max_record_bytes: int, times: TimeBounds
) -> "NativeEncoder | Encoder":
    """Return the fastest encoder available; all give equal records and reasons."""
    if not native.is_used():
        return Encoder(event, max_record_bytes=max_record_bytes, times=times)
    from mev.wire.native_codec import NativeEncoder  # noqa: PLC0415 - needs the native module

    return NativeEncoder(event, max_record_bytes=max_record_bytes, times=times)
