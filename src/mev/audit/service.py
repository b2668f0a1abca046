"""Audit records of the running process, written by a separate thread.

Actions that raise risk call :meth:`Audit.record` first, and are not executed if it fails. Actions
that lower risk are executed first and call :meth:`Audit.record_later`, which neither fails nor
blocks: nothing delays the kill switch.
"""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

from prometheus_client import Counter, Gauge

from mev.audit.errors import AuditUnavailableError
from mev.audit.journal import Journal
from mev.audit.log import Log
from mev.audit.redact import Redactor
from mev.core.asgi import SENDER
from mev.core.clock import now_ns
from mev.crypto.keys import SigningKey
from mev.crypto.trust import TrustStore
from mev.wire.pb.audit_pb2 import AuditRecord

LOG = logging.getLogger(__name__)
RECORDS = Counter("mev_audit_records_total", "Records on the disk.")
FAILED = Counter(
    "mev_audit_failed_total", "Records that were refused because they could not be written."
)
SPOOLED = Gauge(
    "mev_audit_spooled",
    "Records of lowering actions that wait in memory because they cannot be written; alert "
    "above 0.",
)
DROPPED = Counter(
    "mev_audit_spool_dropped_total",
    "Records of lowering actions that were lost because too many waited.",
)
MAX_TEXT = 1024
_MAX_WAITING = 10_000
_MAX_BATCH = 1000
_RETRY_S = 0.5


@dataclass(slots=True)
class _Waiting:
    record: AuditRecord
    index: "Future[int]" = field(default_factory=Future)


class Audit:
    """The audit trail of this process in `folder`; `role` names the process.

    `timeout_s` limits the wait for the disk, `spool_records` the memory of :meth:`record_later`;
    `check` and `check_missing` are the parameters of :class:`Journal`.
    """

    def __init__(
        self,
        folder: Path,
        role: str,
        key: SigningKey,
        *,
        timeout_s: float = 5.0,
        spool_records: int = 10_000,
        segment_bytes: int = 16 << 20,
        check: Callable[[Log, TrustStore], None] = lambda log, known: None,
        check_missing: Callable[[str, TrustStore], None] = lambda role, known: None,
    ) -> None:
        self.folder = folder
        self._open_journal: Callable[[], Journal] = lambda: Journal(
            folder,
            role,
            key,
            segment_bytes=segment_bytes,
            check=check,
            check_missing=check_missing,
        )
        self._timeout_s = timeout_s
        self._spool_records = spool_records
        self._waiting: deque[_Waiting] = deque()
        self._spool: deque[AuditRecord] = deque()
        self._journal: Journal | None = None
        self._redactor: Redactor | None = None
        self._due = threading.Event()
        self._closing = False
        # Set after every write; cleared by the thread that copies the journal.
        self.grown = threading.Event()
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)

    def start(self) -> None:
        """Open the journal and start writing; blocks until the journal is read.

        :raises JournalInUseError: when another process writes it.
        """
        try:
            self._prepare()
        except OSError as error:
            LOG.error(
                "the audit trail cannot be opened yet: %s",
                error,
                extra={"action": "audit_unavailable"},
            )
        self._thread.start()

    def close(self) -> None:
        """Write pending records, sign the end of the journal and close it."""
        self._closing = True
        self._due.set()
        self._thread.join()
        if self._journal:
            self._journal.close()

    @property
    def journal(self) -> Journal:
        """The journal.

        :raises AuditUnavailableError: while it cannot be opened.
        """
        if self._journal is None:
            raise AuditUnavailableError(
                f"the audit trail in {self.folder} cannot be opened; see the log", retry_after_s=5
            )
        return self._journal

    async def record(
        self,
        actor: str,
        action: str,
        object: str,  # noqa: A002 - the field's name
        outcome: str = "ok",
        details: Mapping[str, object] | None = None,
        *,
        session: str = "",
        remote: str = "",
        correlation_id: str = "",
    ) -> int:
        """Record an action before it is executed; return the index when it is durable.

        :raises AuditUnavailableError: when it is not; the action must not be executed then.
        """
        waiting = _Waiting(
            self._make(
                actor, action, object, outcome, details or {}, session, remote, correlation_id
            )
        )
        if len(self._waiting) >= _MAX_WAITING:
            FAILED.inc()
            raise AuditUnavailableError(
                "too many records wait for the disk; nothing that needs one is done",
                retry_after_s=1,
            )
        self._waiting.append(waiting)
        self._due.set()
        try:
            return await asyncio.wait_for(asyncio.wrap_future(waiting.index), self._timeout_s)
        except TimeoutError:
            FAILED.inc()
            raise AuditUnavailableError(
                f"the audit trail was not written within {self._timeout_s:g} s", retry_after_s=5
            ) from None

    def record_later(
        self,
        actor: str,
        action: str,
        object: str,  # noqa: A002 - the field's name
        outcome: str = "ok",
        details: Mapping[str, object] | None = None,
        *,
        session: str = "",
        remote: str = "",
        correlation_id: str = "",
    ) -> None:
        """Record an executed action as soon as possible; never raises or blocks."""
        try:
            record = self._make(
                actor, action, object, outcome, details or {}, session, remote, correlation_id
            )
        except Exception:  # the action was executed already
            LOG.exception("details of %s left out", action, extra={"action": "audit_details"})
            record = self._make(
                actor,
                action,
                object,
                outcome,
                {"left_out": "not JSON"},
                session,
                remote,
                correlation_id,
            )
        if len(self._spool) >= self._spool_records:
            DROPPED.inc()
            LOG.error(
                "record of %s by %s on %s lost: too many wait",
                action,
                actor,
                object,
                extra={"action": "audit_dropped"},
            )
            return
        self._spool.append(record)
        self._due.set()

    def _make(
        self,
        actor: str,
        action: str,
        object: str,  # noqa: A002
        outcome: str,
        details: Mapping[str, object],
        session: str,
        remote: str,
        correlation_id: str,
    ) -> AuditRecord:
        sender = SENDER.get()
        if sender is not None:
            session, remote = session or sender.session, remote or sender.remote
        return AuditRecord(
            at_ns=now_ns(),
            actor=_clip(actor or "system"),
            session=_clip(session),
            remote=_clip(remote),
            action=_clip(action),
            object=_clip(object),
            outcome=_clip(outcome),
            # Without a key in the folder, details cannot be redacted and are omitted.
            details_json=self._redactor.details_json(details) if self._redactor else "{}",
            correlation_id=_clip(correlation_id),
        )

    def _prepare(self) -> Journal:
        if self._journal is None:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._redactor = self._redactor or Redactor.of_folder(self.folder)
            self._journal = self._open_journal()
            if self._journal.damage:
                self.record_later(
                    "system",
                    "audit.log_damaged",
                    self._journal.log_id,
                    "journal_damaged",
                    {"damage": self._journal.damage.detail},
                )
        return self._journal

    def _run(self) -> None:
        while True:
            stuck = not self._write_batch()
            SPOOLED.set(len(self._spool))
            if self._closing and (stuck or not (self._waiting or self._spool)):
                self._give_up()
                return
            if stuck or not (self._waiting or self._spool):
                self._due.wait(_RETRY_S if stuck else None)
                self._due.clear()

    def _write_batch(self) -> bool:
        """Write pending records in one batch; return whether none is stuck."""
        spooled = [self._spool[number] for number in range(min(len(self._spool), _MAX_BATCH))]
        waiting = [self._waiting.popleft() for _ in range(min(len(self._waiting), _MAX_BATCH))]
        waiting = [one for one in waiting if one.index.set_running_or_notify_cancel()]
        records = [*spooled, *(one.record for one in waiting)]
        if not records:
            return True
        try:
            first = self._prepare().append(records)
        except (AuditUnavailableError, OSError) as error:
            self._refuse(waiting, str(error))
            return False
        except Exception:  # callers must receive the error and the thread must continue
            LOG.exception("the audit trail failed", extra={"action": "audit_failed"})
            self._refuse(waiting, "an error of ours; it is in the log")
            return False
        for _ in spooled:
            self._spool.popleft()
        for index, one in enumerate(waiting, start=first + len(spooled)):
            one.index.set_result(index)
        RECORDS.inc(len(records))
        self.grown.set()
        return True

    def _refuse(self, waiting: list[_Waiting], reason: str) -> None:
        FAILED.inc(len(waiting))
        for one in waiting:
            one.index.set_exception(
                AuditUnavailableError(
                    f"not done, for it cannot be written down: {reason}", retry_after_s=5
                )
            )

    def _give_up(self) -> None:
        self._refuse(
            [one for one in self._waiting if one.index.set_running_or_notify_cancel()],
            "the system stops",
        )
        for record in self._spool:
            LOG.error(
                "never written: %s by %s on %s",
                record.action,
                record.actor,
                record.object,
                extra={"action": "audit_dropped"},
            )


def _clip(text: str) -> str:
    """Return `text` clipped and encodable for a record."""
    return text[:MAX_TEXT].encode(errors="replace").decode()
