"""Outputs of events: the broker, or JSON lines on standard output."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import BinaryIO, Protocol

from mev.capture.service import Event
from mev.core.errors import UnavailableError
from mev.wire import registry
from mev.wire.render import renderer


class EventPublisher(Protocol):
    """The required interface of the bus."""

    def publish_and_wait(self, topic: str, records: list[registry.KafkaRecord], /) -> None:
        """Publish and return when the brokers have acknowledged all records."""


Connect = Callable[[], AbstractContextManager[EventPublisher]]


class BrokerOutput:
    """Publishes events.

    Reconnects when the broker has moved, as the embedded one does on restart.
    """

    def __init__(
        self,
        connect: Connect,
        *,
        attempts: int = 5,
        pause_s: float = 1.0,
        sleep: Callable[[float], None],
    ) -> None:
        """Set the number of ``attempts`` per batch, and the pause before each retry."""
        self._connect = connect
        self._attempts = attempts
        self._pause_s = pause_s
        self._sleep = sleep
        self._stack = ExitStack()
        self._publisher: EventPublisher | None = None

    def open(self) -> None:
        """Connect now, so that a missing broker is detected before any work."""
        self._publisher = self._stack.enter_context(self._connect())

    def close(self) -> None:
        """Disconnect."""
        self._publisher = None
        self._stack.close()

    def publish(self, events: Sequence[Event]) -> None:
        """Publish a batch, each type to its topic.

        Events have ids, so that a repeat after a failure is harmless.
        """
        for name, event_type in registry.EVENT_TYPES.items():
            records = [
                event_type.record(event) for event in events if type(event) is event_type.message
            ]
            if records:
                self._publish(registry.EVENT_TYPES[name].topic, records)

    def _publish(self, topic: str, records: list[registry.KafkaRecord]) -> None:
        for attempt in range(self._attempts):
            try:
                if self._publisher is None:
                    self.open()
                if self._publisher is not None:
                    self._publisher.publish_and_wait(topic, records)
            except UnavailableError:
                self.close()
                if attempt + 1 == self._attempts:
                    raise
                self._sleep(self._pause_s)
            else:
                return


class LineOutput:
    """Writes events as JSON lines: all fields of the message, and ``type``."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._render = {event.message: renderer(event) for event in registry.EVENT_TYPES.values()}

    def publish(self, events: Sequence[Event]) -> None:
        """Write a batch."""
        for event in events:
            self._stream.write(self._render[type(event)](event.SerializeToString()) + b"\n")
        self._stream.flush()
