import asyncio
import time

import pytest

from mev.limits import shedding
from mev.limits.shedding import LoadShedder, OverloadedError


def test_work_is_refused_while_the_loop_is_late_and_a_little_after() -> None:
    shedder = LoadShedder(max_lag_s=0.2, max_fullness=1, fullness=lambda: 0)
    shedder.note(0.1)
    shedder.check()
    shedder.note(0.7)
    for _ in range(2):
        with pytest.raises(OverloadedError):
            shedder.check()
        shedder.note(0)
    shedder.check()


def test_events_are_refused_while_the_queue_is_full() -> None:
    fullness = 0.9
    shedder = LoadShedder(max_lag_s=1, max_fullness=0.9, fullness=lambda: fullness)
    shedder.check_queue()
    fullness = 0.91
    with pytest.raises(OverloadedError) as caught:
        shedder.check_queue()
    assert caught.value.retry_after_s == 1
    shedder.check()


async def test_loop_held_up_after_idle_time_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shedding, "_PERIOD_S", 0.001)
    shedder = LoadShedder(max_lag_s=0.2, max_fullness=1, fullness=lambda: 0)
    watching = asyncio.create_task(shedder.watch())
    await asyncio.sleep(0.3)
    shedder.lag_s = -1.0
    await asyncio.sleep(0.1)
    assert shedder.lag_s == -1.0  # idle: nothing is measured
    shedder.check()
    await asyncio.sleep(0.01)
    time.sleep(0.5)  # noqa: ASYNC251 - what the shedder is for
    while shedder.lag_s <= 0.2:  # noqa: ASYNC110 - it has no event to wait for
        await asyncio.sleep(0)
    with pytest.raises(OverloadedError):
        shedder.check()
    watching.cancel()


async def test_a_loop_that_is_held_up_is_noticed() -> None:
    shedder = LoadShedder(max_lag_s=0.2, max_fullness=1, fullness=lambda: 0)
    watching = asyncio.create_task(shedder.watch())
    await asyncio.sleep(0)
    time.sleep(0.5)  # noqa: ASYNC251 - what the shedder is for
    while not shedder.lag_s:  # noqa: ASYNC110 - it has no event to wait for
        await asyncio.sleep(0)
    with pytest.raises(OverloadedError):
        shedder.check()
    watching.cancel()
