"""Starts and changes the subscriptions of one client, for any transport."""

import asyncio
from collections.abc import Coroutine, Sequence

from mev.core.errors import MevError
from mev.realtime import messages
from mev.realtime.access import StreamAccess
from mev.realtime.batch import EncodedBatch, FrameBatch, MessageBlock, Span
from mev.realtime.client import Client
from mev.realtime.errors import InvalidFieldError, LogRequiredError, UnsupportedError
from mev.realtime.hub import Hub
from mev.realtime.options import AtCursor, DeliveryMode, Live, OnSlow, Past, SubscriptionOptions
from mev.realtime.positions import Beginning, StartOutcome
from mev.realtime.replay_pool import ReplayPool, ReplayReader
from mev.realtime.snapshots import NewestEvent


class Subscriber:
    """Checks requests against quotas, starts subscriptions and confirms them."""

    def __init__(self, hub: Hub, client: Client, access: StreamAccess) -> None:
        self._hub = hub
        self._client = client
        self._access = access

    def subscribe(self, request: messages.Subscribe) -> Coroutine[None, None, None] | None:
        """Start a subscription.

        The result, if any, must be awaited to finish it, and raises the same errors.

        :raises MevError: if it is refused.
        """
        self._hub.check_id(self._client, request.id)
        self._access.check_subscription(self._client)
        self._access.check_keys(self._client, request.options)
        self._check_datagrams(request.options)
        if isinstance(request.start, Live):
            return self._subscribe_live(request)
        if request.options.delivery is DeliveryMode.DATAGRAM:
            raise InvalidFieldError("datagrams are live; leave from out", field="from")
        if request.snapshot:
            raise InvalidFieldError(
                "a snapshot is of now; leave from or snapshot out", field="snapshot"
            )
        self._check_log(request.start)
        pool = self._hub.replay_pool
        if pool is None:
            raise UnsupportedError("this server has no history; start live", field="from")
        return self._subscribe_from(request, request.start, pool, pool.reader())

    def update(self, subscription_id: str, options: SubscriptionOptions) -> None:
        """Change the options of a subscription.

        :raises MevError: if it is refused.
        """
        self._check_datagrams(options)
        self._access.check_keys(self._client, options)
        subscription = self._hub.update(self._client, subscription_id, options)
        outcome = StartOutcome.RESUMED if subscription.behind else StartOutcome.LIVE
        positions = dict(subscription.unsent())
        self._confirm(
            "updated", subscription_id, options, Beginning(outcome=outcome, positions=positions)
        )

    def _subscribe_live(self, request: messages.Subscribe) -> Coroutine[None, None, None] | None:
        if request.snapshot:
            if request.options.delivery is DeliveryMode.DATAGRAM:
                raise InvalidFieldError(
                    "datagrams carry no snapshot; leave snapshot or delivery out", field="snapshot"
                )
            return self._subscribe_with_snapshot(request)
        self._hub.subscribe(self._client, request.id, request.options)
        self._confirm("subscribed", request.id, request.options, self._live(request.options))
        return None

    async def _subscribe_from(
        self, request: messages.Subscribe, start: Past, pool: ReplayPool, reader: ReplayReader
    ) -> None:
        """Start a subscription that reads history first."""
        try:
            types = [self._hub.types[name] for name in sorted(request.options.topics)]
            beginning = await reader.begin(start, types, self._hub.log)
        except BaseException:
            reader.close()
            raise
        if self._client.closing:
            reader.close()
            return
        self._confirm("subscribed", request.id, request.options, beginning)
        self._hub.subscribe_from(
            self._client, request.id, request.options, dict(beginning.positions), pool, reader
        )

    async def _subscribe_with_snapshot(self, request: messages.Subscribe) -> None:
        """Start a subscription with a snapshot: the newest event of each key, then live events.

        Live events are queued meanwhile.
        """
        hub, client, options = self._hub, self._client, request.options
        kafka_topics = [hub.types[name].topic for name in sorted(options.topics)]
        await hub.snapshots.follow(kafka_topics)
        if client.closing:
            return
        newest = {topic: hub.snapshots.newest(topic) for topic in kafka_topics}
        beginning = self._live(options)
        subscription = hub.subscribe(client, request.id, options)
        subscription.await_snapshot()
        try:
            encoded_batches = await asyncio.to_thread(self._encode_snapshot, newest, options)
            if self._client.closing:
                return
            client.check_snapshot(encoded_batches)
        except MevError:
            hub.unsubscribe(client, request.id)
            raise
        self._confirm("subscribed", request.id, options, beginning)
        subscription.send_snapshot(encoded_batches)

    def _encode_snapshot(
        self, newest: dict[str, Sequence[NewestEvent]], options: SubscriptionOptions
    ) -> list[EncodedBatch]:
        """Return the events that match the filter, in batches.

        If there are none, the result is one empty batch.
        """
        size = self._hub.limits.batch_max_size
        spans: list[Span] = []
        for topic, events in newest.items():
            for partition in dict.fromkeys(event.partition for event in events):
                of_partition = [event for event in events if event.partition == partition]
                block = MessageBlock(
                    self._hub.topic(topic),
                    partition,
                    [event.offset for event in of_partition],
                    [event.value for event in of_partition],
                    [event.key for event in of_partition],
                    [event.published_ms for event in of_partition],
                )
                chosen = list(block.select(options.filter))
                spans += [
                    Span(block, chosen[start : start + size])
                    for start in range(0, len(chosen), size)
                ]
        batches = [FrameBatch(self._hub.log, (), {}, [span]) for span in spans] or [
            FrameBatch(self._hub.log, (), {})
        ]
        return [self._client.encode(batch) for batch in batches]

    def _check_log(self, start: Past) -> None:
        if self._hub.log_is_lasting or not isinstance(start, AtCursor) or start.log is not None:
            return
        if any(start.positions.values()):
            raise LogRequiredError(
                "the cursor does not say of which log it is, "
                "and the embedded broker begins another in each new data folder; "
                'send {"resume": "..."}, or the "log" of the message that had the cursor',
                field="from",
            )

    def _check_datagrams(self, options: SubscriptionOptions) -> None:
        if options.delivery is not DeliveryMode.DATAGRAM:
            return
        if not self._client.link.datagram_bytes():
            raise UnsupportedError(
                "datagrams need WebTransport, and a peer that takes them", field="delivery"
            )
        if options.on_slow is OnSlow.LOSSLESS:
            raise InvalidFieldError('datagrams may be lost: not "lossless"', field="on_slow")

    def _live(self, options: SubscriptionOptions) -> Beginning:
        topics = {self._hub.types[name].topic for name in options.topics}
        positions = {at: offset for at, offset in self._hub.positions.items() if at[0] in topics}
        return Beginning(outcome=StartOutcome.LIVE, positions=positions)

    def _confirm(
        self, op: str, subscription_id: str, options: SubscriptionOptions, beginning: Beginning
    ) -> None:
        self._client.answer(
            messages.subscribed(
                op, subscription_id, options, beginning, self._hub.log, self._hub.types
            )
        )
