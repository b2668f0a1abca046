"""What control needs of the audit trail."""

from typing import Protocol

SYSTEM = "system"  # who acts when nobody asked


class Audit(Protocol):
    """The audit trail: `record` returns when the record is safe or raises, `record_later` does neither."""

    async def record(self, actor: str, action: str, object: str, outcome: str = "ok", *, correlation_id: str = "") -> int:  # noqa: A002
        """Write a record down."""

    def record_later(self, actor: str, action: str, object: str, outcome: str = "ok", *, correlation_id: str = "") -> None:  # noqa: A002
        """Write a record down as soon as possible."""
