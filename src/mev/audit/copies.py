"""Copies of the trail: checkpoints to Kafka and ClickHouse, records to ClickHouse, retention.

It runs in a separate thread and catches up after an outage. Only what the journal has on disk is
copied.
"""

import base64
import logging
import threading
import time
from collections.abc import Callable
from contextlib import closing

from prometheus_client import Gauge

from mev.audit import tables
from mev.audit.errors import AuditUnavailableError
from mev.audit.journal import Journal
from mev.audit.log import SignedHead
from mev.audit.service import Audit
from mev.bus.kafka import Brokers, BrokerUnavailableError
from mev.bus.replay import Replay
from mev.core.clock import now_ns
from mev.core.errors import UnavailableError
from mev.store.clickhouse import ClickHouse
from mev.wire.topics import AUDIT

LOG = logging.getLogger(__name__)
LAG = Gauge("mev_audit_copy_lag_records", "Records that are not in ClickHouse yet.")
UNPUBLISHED = Gauge(
    "mev_audit_checkpoint_unpublished", "1 while the newest checkpoint is not in Kafka."
)
_BATCH = 1000
_SETTLE_S = 0.05
_RETRY_MAX_S = 30.0
_POLL_S = 0.2


class Copies:
    """Copies the journal of `audit`.

    `publish` sends one message to the audit topic and returns when the brokers have acknowledged
    it. `checkpoint_s` is the interval of checkpoints while records are added; segments older than
    `retain_s` are removed, none when 0.
    """

    def __init__(
        self,
        audit: Audit,
        clickhouse: ClickHouse,
        publish: Callable[[bytes, bytes], None],
        *,
        checkpoint_s: float = 10.0,
        retain_s: float = 0,
    ) -> None:
        self._audit = audit
        self._clickhouse = clickhouse
        self._publish = publish
        self._checkpoint_s = checkpoint_s
        self._retain_s = retain_s
        self._next_index: int | None = None  # unknown until read from ClickHouse
        self._next_size = 0
        self._published_size = 0
        self._retry_s = 0.0
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="audit-copies", daemon=True)

    def start(self) -> None:
        """Start copying."""
        self._audit.grown.set()
        self._thread.start()

    def close(self, timeout_s: float) -> None:
        """Sign and copy the remaining records within `timeout_s`.

        The next start copies the rest.
        """
        self._closing = True
        self._audit.grown.set()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        checkpoint_at = 0.0
        closing = False
        while not closing:
            self._audit.grown.wait(
                self._retry_s or max(0.0, checkpoint_at - time.monotonic()) or self._checkpoint_s
            )
            self._audit.grown.clear()
            time.sleep(_SETTLE_S)  # records arrive in groups; insert one block per group
            closing = self._closing  # earlier records are still signed and copied
            due = time.monotonic() >= checkpoint_at or closing
            if due:
                checkpoint_at = time.monotonic() + self._checkpoint_s
            try:
                self._pass(self._audit.journal, sign=due)
            except AuditUnavailableError as error:
                LOG.warning("no checkpoint: %s", error, extra={"action": "audit_checkpoint"})
            except Exception:  # the trail continues without copies
                LOG.exception("the audit trail is not copied", extra={"action": "audit_copies"})
                self._retry_s = _RETRY_MAX_S

    def _pass(self, journal: Journal, *, sign: bool) -> None:
        if sign:
            journal.checkpoint()
        done = self._attempt("ClickHouse", lambda: self._copy(journal))
        done = self._attempt("Kafka", lambda: self._publish_newest(journal.heads)) and done
        self._retry_s = 0.0 if done else min(_RETRY_MAX_S, self._retry_s * 2 or 0.5)
        LAG.set(journal.size - (self._next_index or 0))
        if sign and self._retain_s and self._next_index:
            journal.retain(since_ns=now_ns() - int(self._retain_s * 1e9), below=self._next_index)

    def _attempt(self, what: str, copy: Callable[[], None]) -> bool:
        try:
            copy()
        except UnavailableError as error:
            LOG.warning(
                "%s does not take the audit trail: %s",
                what,
                error,
                extra={"action": "audit_copies"},
            )
            return False
        return True

    def _copy(self, journal: Journal) -> None:
        """Copy records before checkpoints: a copied checkpoint covers only copied records."""
        if self._next_index is None:
            tables.create_tables(self._clickhouse)
            self._next_size = tables.newest_size(self._clickhouse, journal.log_id) + 1
            self._next_index = tables.next_index(self._clickhouse, journal.log_id)
        try:
            while records := journal.records(max(self._next_index, journal.first_kept), _BATCH):
                first = max(self._next_index, journal.first_kept)
                tables.insert_records(self._clickhouse, journal.log_id, first, records)
                self._next_index = first + len(records)
            for head in [
                head
                for head in journal.heads
                if self._next_size <= head.checkpoint.size <= self._next_index
            ]:
                self._clickhouse.insert_row(tables.HEADS_TABLE, _row(head))
                self._next_size = head.checkpoint.size + 1
        except UnavailableError:
            self._next_index = None  # ClickHouse may have lost data: read it again
            raise

    def _publish_newest(self, heads: list[SignedHead]) -> None:
        if heads and heads[-1].checkpoint.size != self._published_size:
            UNPUBLISHED.set(1)
            self._publish(heads[-1].checkpoint.log_id.encode(), heads[-1].envelope)
            self._published_size = heads[-1].checkpoint.size
            UNPUBLISHED.set(0)


def _row(head: SignedHead) -> dict[str, object]:
    checkpoint = head.checkpoint
    return {
        "log_id": checkpoint.log_id,
        "size": checkpoint.size,
        "root_hash": checkpoint.root_hash.hex(),
        "at_ns": checkpoint.at_ns,
        "envelope": base64.b64encode(head.envelope).decode(),
    }


def published_checkpoints(
    brokers: Brokers, *, timeout_s: float, newest: int | None = None
) -> list[bytes]:
    """Return the messages of the audit topic; blocks.

    `newest` limits the messages per partition.

    :raises BrokerUnavailableError: when they cannot be read within `timeout_s`.
    """
    deadline = time.monotonic() + timeout_s
    messages: list[bytes] = []
    with closing(Replay(brokers, timeout_s=timeout_s)) as replay:
        bounds = replay.bounds([AUDIT])
        wanted = {at: latest for at, (earliest, latest) in bounds.items() if latest > earliest}
        first = {
            at: max(bounds[at].earliest, latest - newest if newest else 0)
            for at, latest in wanted.items()
        }
        replay.seek(first)
        while wanted:
            if time.monotonic() > deadline:
                raise BrokerUnavailableError(
                    f"{AUDIT} was not read to its end within {timeout_s:g} s", retry_after_s=5
                )
            for batch in replay.read(_POLL_S):
                at = batch.topic, batch.partition
                messages += batch.values
                if batch.offsets[-1] + 1 >= wanted.get(at, 0):
                    wanted.pop(at, None)
    return messages
