from mev.realtime.group import Window
from tests.unit.realtime.clock import Clock


class Flushes:
    """A group that notes when it is flushed."""

    def __init__(self, log: list[str], name: str) -> None:
        self._log = log
        self._name = name

    def flush(self) -> None:
        self._log.append(self._name)


async def test_each_group_is_flushed_once_in_order(clock: Clock) -> None:
    log: list[str] = []
    window = Window(0.002)
    groups = [Flushes(log, name) for name in "abc"]
    for group in (*groups, groups[0]):
        window.open(group)
    window.shut(groups[1])
    await clock.forward(0.02)
    assert log == ["a", "c"]
    assert window._timer is None


async def test_a_group_may_open_its_window_again(clock: Clock) -> None:
    log: list[str] = []
    window = Window(0.001)
    group = Flushes(log, "a")
    for _ in range(3):
        window.open(group)
        await clock.forward(0.01)
    assert log == ["a"] * 3


async def test_later_windows_keep_the_timer_armed(clock: Clock) -> None:
    log: list[str] = []
    window = Window(0.02)
    window.open(Flushes(log, "a"))
    await clock.forward(0.01)
    window.open(Flushes(log, "b"))
    await clock.forward(0.1)
    assert log == ["a", "b"]


async def test_nothing_is_flushed_after_closing(clock: Clock) -> None:
    log: list[str] = []
    window = Window(0.001)
    window.open(Flushes(log, "a"))
    window.close()
    window.close()
    await clock.forward(0.01)
    assert log == []
