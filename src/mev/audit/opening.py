"""Comparison of a log with its copies on opening, before it is signed again.

A new signature would make a rewritten log look valid: without the checkpoints in the folder, only
the copies can show the change.
"""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from mev.audit import tables
from mev.audit.copies import published_checkpoints
from mev.audit.errors import JournalDamagedError
from mev.audit.log import Log
from mev.audit.verify import compare_heads, compare_published, compare_rows, signed_logs
from mev.bus.kafka import Brokers
from mev.core.errors import UnavailableError
from mev.crypto.trust import TrustStore
from mev.store.clickhouse import ClickHouse

LOG = logging.getLogger(__name__)
_NEWEST = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class CopiesCheck:
    """Compares a log with its newest copies; a service that exceeds `timeout_s` is skipped."""

    clickhouse: ClickHouse
    brokers: Brokers
    timeout_s: float

    def __call__(self, log: Log, trust: TrustStore) -> None:
        """Compare the log with its copies; blocks.

        :raises JournalDamagedError: when a copy does not match the log.
        """
        self._attempt("ClickHouse", lambda: self._compare_clickhouse(log, trust))
        self._attempt("Kafka", lambda: self._compare_kafka(log, trust))

    def missing(self, role: str, trust: TrustStore) -> None:
        """Check that the copies have no log of `role` under a trusted key; blocks.

        :raises JournalDamagedError: if they have one.
        """
        self._attempt("ClickHouse", lambda: self._find_in_clickhouse(role, trust))
        self._attempt(
            "Kafka",
            lambda: _refuse_removed(role, self._published(), trust, "Kafka mev.audit.v1"),
        )

    def _attempt(self, what: str, compare: Callable[[], None]) -> None:
        try:
            compare()
        except UnavailableError as error:
            LOG.warning(
                "the audit trail is signed without a comparison with its copy in %s, which "
                "cannot be read (%s); run `mev audit verify`",
                what,
                error,
                extra={"action": "audit_unchecked"},
            )

    def _compare_clickhouse(self, log: Log, trust: TrustStore) -> None:
        tables.create_tables(self.clickhouse)
        size, envelopes = tables.newest_envelope(
            self.clickhouse, log.log_id, answer_s=self.timeout_s
        )
        compare_heads(log, envelopes, trust)
        compare_rows(
            log,
            tables.newest_records(
                self.clickhouse, log.log_id, size, limit=_NEWEST, answer_s=self.timeout_s
            ),
        )

    def _compare_kafka(self, log: Log, trust: TrustStore) -> None:
        compare_published(log, self._published(), trust)

    def _published(self) -> list[bytes]:
        return published_checkpoints(self.brokers, timeout_s=self.timeout_s, newest=_NEWEST)

    def _find_in_clickhouse(self, role: str, trust: TrustStore) -> None:
        tables.create_tables(self.clickhouse)
        envelopes = tables.newest_envelopes(
            self.clickhouse, role, limit=_NEWEST, answer_s=self.timeout_s
        )
        _refuse_removed(role, envelopes, trust, "ClickHouse audit_checkpoints")


def _refuse_removed(role: str, envelopes: Iterable[bytes], trust: TrustStore, place: str) -> None:
    for log_id in sorted(signed_logs(envelopes, trust)):
        if log_id.startswith(f"{role}-"):
            raise JournalDamagedError(
                f"a checkpoint of the log {log_id} under a key of this folder, which does not have "
                "the log: it was removed",
                place=place,
                offset=None,
                index=None,
            )
