import asyncio

from mev.realtime.window import Window


class Flushes:
    """A group that notes when it is flushed."""

    def __init__(self, log: list[str], name: str) -> None:
        self._log = log
        self._name = name

    def flush(self) -> None:
        self._log.append(self._name)


async def test_each_group_is_flushed_once_in_order() -> None:
    log: list[str] = []
    window = Window(0.002)
    groups = [Flushes(log, name) for name in "abc"]
    for group in (*groups, groups[0]):
        window.open(group)
    window.shut(groups[1])
    await asyncio.sleep(0.02)
    assert log == ["a", "c"]
    assert window._timer is None


async def test_a_group_may_open_its_window_again() -> None:
    log: list[str] = []
    window = Window(0.001)
    group = Flushes(log, "a")
    for _ in range(3):
        window.open(group)
        await asyncio.sleep(0.01)
    assert log == ["a"] * 3


async def test_later_windows_keep_the_timer_armed() -> None:
    log: list[str] = []
    window = Window(0.02)
    window.open(Flushes(log, "a"))
    await asyncio.sleep(0.01)
    window.open(Flushes(log, "b"))
    await asyncio.sleep(0.1)
    assert log == ["a", "b"]


async def test_nothing_is_flushed_after_closing() -> None:
    log: list[str] = []
    window = Window(0.001)
    window.open(Flushes(log, "a"))
    window.close()
    window.close()
    await asyncio.sleep(0.01)
    assert log == []
