"""A hundred models are put into a seat while two threads score with it at full speed."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from mev.core.clock import now_ns
from mev.models.register import register
from mev.models.registry import Registry
from mev.predict.predictor import Rows
from mev.predict.seat import Seat
from mev.wire.features import OPPORTUNITY
from tests.unit.models.samples import KEY, TRUST, Made, rows, trained

SWAPS, NATIVE_EVERY = 100, 25
TABLE = rows(4096, 11)
BATCHES = [TABLE[start : start + 64] for start in range(0, len(TABLE), 64)]


class Caller(threading.Thread):
    """Scores batch after batch, and compares each with what the model that it names must give."""

    def __init__(self, seat: Seat, numbers: Iterator[int], expected: dict[str, list[bytes]]) -> None:
        super().__init__(daemon=True)
        self._seat = seat
        self._numbers = numbers
        self._expected = expected
        self._stopped = threading.Event()
        self.scored: list[int] = []
        self.wrong: list[int] = []
        self.seen: set[str] = set()
        self.worst_ns = 0

    def run(self) -> None:
        while not self._stopped.is_set():
            number = next(self._numbers)
            place, started = number % len(BATCHES), time.perf_counter_ns()
            found = self._seat.score(BATCHES[place])
            self.worst_ns = max(self.worst_ns, time.perf_counter_ns() - started)
            if found is None or found.scores.tobytes() != self._expected[found.model_id][place]:
                self.wrong.append(number)
                continue
            self.scored.append(number)
            self.seen.add(found.model_id)

    def stop(self) -> None:
        self._stopped.set()
        self.join()


@pytest.fixture(scope="module")
def models(original: Made, tmp_path_factory: pytest.TempPathFactory) -> tuple[Registry, list[str], str]:
    """A registry, the ids of models that are data only, and the id of one that is taken in its compiled form."""
    registry = Registry(tmp_path_factory.mktemp("swapped"), TRUST)
    kept = [register(registry, trained(seed=seed, rounds=rounds), KEY).manifest.model_id for seed, rounds in ((3, 12), (4, 30), (5, 7))]
    compiled = original.manifest
    files = {form: original.path(form).read_bytes() for form in ("ubj", "so", "mevt")}
    return registry, kept, registry.add(compiled, files, KEY).manifest.model_id


def _scores(predict: Callable[[Rows], Rows]) -> list[bytes]:
    return [predict(batch).tobytes() for batch in BATCHES]


@pytest.mark.timeout(180)
def test_a_hundred_swaps_under_full_speed_lose_and_spoil_nothing(
    models: tuple[Registry, list[str], str], record_property: Callable[[str, object], None]
) -> None:
    registry, kept, native = models
    expected = {name: _scores(registry.load(name, "mevt").predict) for name in kept}
    expected[native] = _scores(registry.load(native, "so").predict)
    seat = Seat(OPPORTUNITY, now_ns)
    seat.put(registry.load(kept[0]), registry.get(kept[0]).manifest.baseline)
    numbers = itertools.count()
    callers = [Caller(seat, numbers, expected) for _ in range(2)]
    for caller in callers:
        caller.start()
    try:
        for swap in range(1, SWAPS + 1):
            name, form = (kept[swap % len(kept)], "mevt") if swap % NATIVE_EVERY else (native, "so")
            seat.put(registry.load(name, form), registry.get(name).manifest.baseline)
            _wait_until_used(seat, callers)
            use = seat.use()
            assert use is not None
            assert (use.model_id, use.failed) == (name, 0)
    finally:
        for caller in callers:
            caller.stop()
    record_property("worst_pause_us", worst := max(caller.worst_ns for caller in callers) / 1000)
    record_property("batches", batches := sum(len(caller.scored) for caller in callers))
    print(f"{SWAPS} swaps, {batches} batches, the worst call {worst:.0f} us")  # noqa: T201 - a figure to read, not to judge
    assert [caller.wrong for caller in callers] == [[], []]
    assert sorted(number for caller in callers for number in caller.scored) == list(range(batches))
    assert set().union(*(caller.seen for caller in callers)) == set(expected)


def _wait_until_used(seat: Seat, callers: list[Caller]) -> None:
    while (use := seat.use()) is None or use.latency.calls < 2:
        assert all(caller.is_alive() for caller in callers)
        time.sleep(0.0005)
