"""The audit trail of a running process, started and stopped as one."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from mev.audit.copies import Copies
from mev.audit.service import Audit
from mev.bus.publisher import Publisher
from mev.crypto.keys import load_or_create
from mev.store.clickhouse import ClickHouse
from mev.wire.topics import AUDIT

_KEY_FILE = "signing-key"


@asynccontextmanager
async def running(
    folder: Path,
    role: str,
    clickhouse: ClickHouse,
    publisher: Publisher,
    *,
    checkpoint_s: float = 10.0,
    retain_s: float = 0,
    stop_timeout_s: float = 5.0,
) -> AsyncIterator[Audit]:
    """Give the trail of the process in `role`, kept in `folder`; sign, copy and close it at the end.

    Its key is kept beside it, made once. Segments older than `retain_s` are removed, none when 0.
    """
    audit = await asyncio.to_thread(_open, folder, role)

    def publish(key: bytes, value: bytes) -> None:
        publisher.publish_and_wait(AUDIT, [{"key": key, "value": value}])

    copies = Copies(audit, clickhouse, publish, checkpoint_s=checkpoint_s, retain_s=retain_s)
    await asyncio.to_thread(audit.start)
    copies.start()
    try:
        yield audit
    finally:
        await asyncio.to_thread(copies.close, stop_timeout_s)
        await asyncio.to_thread(audit.close)


def _open(folder: Path, role: str) -> Audit:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return Audit(folder, role, load_or_create(folder / _KEY_FILE))
