"""Refused attempts: few records for many requests, and none uncounted."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from mev.audit.attempts import Attempts
from mev.core.asgi import Sender


class Records:
    """Records in memory."""

    def __init__(self) -> None:
        self.written: list[tuple[str, str, str, int]] = []

    def record_later(
        self, actor: str, _action: str, what: str, outcome: str, details: Any, **_more: str
    ) -> None:
        self.written.append((actor, what, outcome, details["count"]))


@given(st.lists(st.tuples(st.integers(0, 300), st.sampled_from([401, 403])), max_size=400))
def test_every_attempt_is_counted_in_a_bounded_number_of_records(
    attempts: list[tuple[int, int]],
) -> None:
    records = Records()
    counter = Attempts(records)  # type: ignore[arg-type]
    for number, status in attempts:
        counter.add(
            Sender(actor="anonymous", remote=f"10.0.0.{number}"),
            "POST",
            "/api/control/command",
            status,
        )
    counter.flush()
    assert sum(count for *_, count in records.written) == len(attempts)
    assert len(records.written) <= 101
    counter.flush()
    assert sum(count for *_, count in records.written) == len(attempts)


def test_flood_of_one_hides_nothing_that_another_tried() -> None:
    records = Records()
    counter = Attempts(records)  # type: ignore[arg-type]
    for _ in range(2):
        for number in range(300):
            counter.add(
                Sender(actor="anonymous", remote="10.0.0.1"), "POST", f"/api/control/{number}", 401
            )
        counter.add(
            Sender(actor="key:1", remote="10.0.0.2"), "POST", "/api/control/kill-switch", 403
        )
        counter.flush()
    assert records.written.count(("key:1", "POST /api/control/kill-switch", "403", 1)) == 2
    assert sum(count for *_, count in records.written) == 602
