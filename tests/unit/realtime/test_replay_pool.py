"""When a place among the readers of the past is likely to be free."""

from mev.realtime.replay_pool import Progress


def test_wait_goes_by_the_speed_so_far() -> None:
    progress = Progress(now=100.0)
    assert progress.wait_s(110.0) is None  # it has not said how much there is
    progress.note(1000)
    assert progress.wait_s(110.0) is None
    progress.note(750)
    assert progress.wait_s(110.0) == 30.0
    assert progress.wait_s(140.0) == 120.0  # its client takes nothing
    progress.note(0)
    assert progress.wait_s(141.0) == 0.0
