"""Tests of the waits that the other tests use."""

import itertools

import pytest

from tests.services import waits
from tests.services.waits import until, until_async


@pytest.fixture(autouse=True)
def _short_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waits, "LIMIT_S", 0.05)


def test_wait_goes_on_while_the_observed_value_changes() -> None:
    numbers = itertools.count()
    assert until(lambda: next(numbers), lambda number: number == 20) == 20


def test_wait_fails_once_nothing_changes() -> None:
    with pytest.raises(AssertionError, match=r"no rows, and nothing changed .*; last: \[1\]"):
        until(lambda: [1], lambda rows: len(rows) > 1, what="no rows")


async def test_wait_in_the_event_loop_has_the_same_limit() -> None:
    numbers = itertools.count()
    assert await until_async(lambda: next(numbers), lambda number: number == 20) == 20
    with pytest.raises(AssertionError, match="nothing changed"):
        await until_async(lambda: False)
