"""Follower of one partition: reads from an offset, detects lost messages, can change clusters."""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from mev.bus.kafka import LONG_POLL_MS, POLL_S, Brokers, BrokerUnavailableError
from mev.bus.progress import ReadProgress

LOG = logging.getLogger(__name__)
_MAX_MESSAGES = 1000
_CLOSE_S = 2.0


@dataclass(frozen=True, slots=True)
class Followed:
    """Consecutive messages of the partition; `lost` is the number missing before them."""

    offsets: list[int]
    values: list[bytes]
    lost: int = 0


class PartitionFollower:
    """A thread that reads one partition and passes the messages to `deliver` in order.

    `on_down` receives the reason when reading fails: no broker answers, or the offset is missing.
    When the brokers return, reading continues from its position; :meth:`follow` switches to another
    cluster. Both are called in the thread, may block, and must not call back.
    """

    def __init__(
        self,
        topic: str,
        deliver: Callable[[Followed], None],
        on_down: Callable[[str], None],
        *,
        partition: int = 0,
        timeout_s: float,
    ) -> None:
        self._at = (topic, partition)
        self._deliver = deliver
        self._on_down = on_down
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._reading: _Reading | None = None

    def follow(self, brokers: Brokers, offset: int) -> None:
        """Read from `offset` of `brokers`, and stop reading the previous ones; blocks.

        :raises BrokerUnavailableError: when the brokers do not answer; nothing is read then.
        """
        with self._lock:
            self._let_go()
            reading = _Reading(brokers, self._at, offset, self._deliver, self._on_down)
            try:
                reading.start(self._timeout_s)
            except KafkaException as error:
                raise BrokerUnavailableError(
                    f"{brokers.servers}: {error.args[0].str()}", retry_after_s=5
                ) from None
            self._reading = reading

    def close(self) -> None:
        """Stop reading; a client that does not stop in time is abandoned and delivers nothing."""
        with self._lock:
            self._let_go()

    def _let_go(self) -> None:
        if self._reading is not None:
            self._reading.close()
            self._reading = None


class _Reading:
    """One partition of one cluster, read by a separate thread."""

    def __init__(
        self,
        brokers: Brokers,
        at: tuple[str, int],
        offset: int,
        deliver: Callable[[Followed], None],
        on_down: Callable[[str], None],
    ) -> None:
        config: dict[str, Any] = brokers.config(
            group_id="mev-follow",
            enable_auto_commit=False,
            auto_offset_reset="error",
            fetch_wait_max_ms=LONG_POLL_MS,
        )
        self._consumer = Consumer({**config, "error_cb": self._error})
        self._at = at
        self._next = offset
        self._deliver = deliver
        self._on_down = on_down
        self._progress = ReadProgress()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"follow-{at[0]}", daemon=True)

    def start(self, timeout_s: float) -> None:
        try:
            self._consumer.list_topics(self._at[0], timeout=timeout_s)
            self._consumer.assign([TopicPartition(*self._at, self._next)])
        except BaseException:
            self._consumer.close()
            raise
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        self._thread.join(_CLOSE_S)
        if self._thread.is_alive():
            LOG.warning(
                "%s: reading has not ended yet", self._at[0], extra={"action": "follow_closing"}
            )

    def _run(self) -> None:
        # Only this thread uses the client, so that it is not closed while in use.
        try:
            while not self._closing.is_set():
                first = self._consumer.poll(POLL_S)
                if first is not None:
                    self._take([first, *self._consumer.consume(_MAX_MESSAGES - 1, 0)])
                else:
                    _, end = self._consumer.get_watermark_offsets(
                        TopicPartition(*self._at), cached=True
                    )
                    self._progress.note(self._at, self._next, end)
        finally:
            self._consumer.close()

    def _take(self, messages: list[Message]) -> None:
        good = []
        for message in messages:
            if (error := message.error()) is None:
                good.append(message)
            elif error.code() == KafkaError._AUTO_OFFSET_RESET:  # noqa: SLF001
                self._down(f"{self._at[0]}: offset {self._next} is not there ({error.str()})")
            else:
                LOG.warning("reading: %s", error.str(), extra={"action": "follow_error"})
        if good:
            offsets = cast("list[int]", [message.offset() for message in good])
            lost = sum(
                offset - expected
                for expected, offset in zip(
                    [self._next, *(one + 1 for one in offsets)], offsets, strict=False
                )
            )
            self._next = offsets[-1] + 1
            if self._closing.is_set():
                return
            self._deliver(Followed(offsets, [message.value() or b"" for message in good], lost))

    def _error(self, error: KafkaError) -> None:
        if error.code() == KafkaError._ALL_BROKERS_DOWN:  # noqa: SLF001
            self._down(error.str())

    def _down(self, reason: str) -> None:
        if not self._closing.is_set():
            self._on_down(reason)
