"""A batch in the form a client reads, ready to be sent or to wait."""

from mev.bus.kafka import Position
from mev.realtime.link import EncodedFrame


class FrameParcel:
    """A batch as Protobuf. `starts` says at which offset of each partition it begins; `waiters` how many queues it waits in."""

    __slots__ = ("count", "frame", "starts", "waiters")

    def __init__(self, count: int, frame: EncodedFrame, starts: dict[Position, int]) -> None:
        self.count = count
        self.frame = frame
        self.starts = starts
        self.waiters = 0

    @property
    def size(self) -> int:
        """Bytes it occupies while it waits."""
        return len(self.frame.payload)


class TextParcel:
    """A batch as JSON: the middle of an `events` message, which does not depend on the client."""

    __slots__ = ("body", "count", "starts", "waiters")

    def __init__(self, count: int, body: bytes, starts: dict[Position, int]) -> None:
        self.count = count
        self.body = body
        self.starts = starts
        self.waiters = 0

    @property
    def size(self) -> int:
        """Bytes it occupies while it waits."""
        return len(self.body)

    def message(self, json_id: bytes, dropped: int, queued: int, lag_ms: int) -> bytes:
        """Put the subscription's id before the events, and how it stands behind them."""
        return b'{"op":"events","id":%b,%b,"dropped":%d,"queued":%d,"lag_ms":%d}' % (json_id, self.body, dropped, queued, lag_ms)


Parcel = FrameParcel | TextParcel
