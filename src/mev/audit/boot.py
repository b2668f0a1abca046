"""Start of the audit trail of a process, and of the counter of refused requests."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from mev.audit.attempts import Attempts
from mev.audit.copies import Copies
from mev.audit.opening import CopiesCheck
from mev.audit.service import Audit
from mev.bus.kafka import Brokers
from mev.bus.publisher import Publisher
from mev.core.tasks import background
from mev.crypto.keys import load_or_create
from mev.settings import Settings
from mev.store.clickhouse import ClickHouse
from mev.wire.topics import AUDIT

_FOLDER = "audit"
_KEY_FILE = "signing-key"
_CHECK_TIMEOUT_S = 3.0
_STOP_TIMEOUT_S = 5.0


@asynccontextmanager
async def running_audit(
    settings: Settings,
    folder: Path,
    role: str,
    clickhouse: ClickHouse,
    publisher: Publisher,
    brokers: Brokers,
) -> AsyncIterator[Audit]:
    """Run the trail of the process with `role` on the data folder `folder`.

    It is first compared with its copies, unless they do not answer in time, and signed, copied and
    closed at the end. Its key is created once.
    """
    check = CopiesCheck(clickhouse=clickhouse, brokers=brokers, timeout_s=_CHECK_TIMEOUT_S)
    audit = await asyncio.to_thread(_open, folder / _FOLDER, role, check)

    def publish(key: bytes, value: bytes) -> None:
        publisher.publish_and_wait(AUDIT, [{"key": key, "value": value}])

    copies = Copies(
        audit,
        clickhouse,
        publish,
        checkpoint_s=settings.audit_checkpoint_s,
        retain_s=settings.audit_retention_days * 86_400,
    )
    await asyncio.to_thread(audit.start)
    copies.start()
    try:
        yield audit
    finally:
        await asyncio.to_thread(copies.close, _STOP_TIMEOUT_S)
        await asyncio.to_thread(audit.close)


@asynccontextmanager
async def running_attempts(audit: Audit) -> AsyncIterator[Attempts]:
    """Yield the counter of refused requests; it records the counts in `audit`."""
    attempts = Attempts(audit)
    async with background(attempts.run()):
        yield attempts


def _open(folder: Path, role: str, check: CopiesCheck) -> Audit:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = folder / _KEY_FILE
    if not path.exists():  # no copy can be of a new key
        return Audit(folder, role, load_or_create(path), check=check)
    return Audit(folder, role, load_or_create(path), check=check, check_missing=check.missing)
