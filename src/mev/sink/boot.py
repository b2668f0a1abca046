"""Start of the sink."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from mev.bus.kafka import Brokers
from mev.bus.publisher import Publisher
from mev.settings import Settings
from mev.sink.partition import BlockLimits
from mev.sink.service import Sink
from mev.sink.writer import Writer, dead_letter_topic
from mev.store.clickhouse import ClickHouse
from mev.wire.registry import BY_TOPIC


@asynccontextmanager
async def running_sink(
    settings: Settings,
    brokers: Brokers,
    cluster_id: str,
    clickhouse: ClickHouse,
    publisher: Publisher,
) -> AsyncIterator[Sink]:
    """Store all events of the cluster in `clickhouse` until the context ends.

    Unreadable records go to the dead-letter topic through `publisher`.
    """
    sink = Sink(
        brokers,
        BY_TOPIC,
        Writer(clickhouse, dead_letter_topic(publisher), cluster_id),
        limits=BlockLimits(
            rows=settings.sink_block_rows,
            size_bytes=settings.sink_block_bytes,
            age_s=settings.sink_block_age_s,
        ),
        buffer_bytes=settings.sink_buffer_bytes,
        insert_threads=settings.sink_insert_threads,
        retry_max_s=settings.sink_retry_max_s,
        timeout_s=settings.service_timeout_s,
        stall_s=settings.sink_stall_s,
    )
    await asyncio.to_thread(sink.start)
    try:
        yield sink
    finally:
        await asyncio.to_thread(sink.close, settings.shutdown_timeout_s / 2)
