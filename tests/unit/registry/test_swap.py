"""A hundred models are put into a seat while two threads score with it at full speed."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from mev.core.clock import now_ns
from mev.registry.registry import Registry
from mev.scoring.active_model import ActiveModel
from mev.scoring.predictor import Rows
from mev.wire.features import OPPORTUNITY
from tests.services.models import register
from tests.unit.registry.samples import KEY, TRUST, Made, rows, trained

SWAPS, NATIVE_EVERY = 100, 25
TABLE = rows(4096, 11)
BATCHES = [TABLE[start : start + 64] for start in range(0, len(TABLE), 64)]


class Caller(threading.Thread):
    """Scores batch after batch, and compares each with what the model that it names must give."""

    def __init__(
        self, active_model: ActiveModel, numbers: Iterator[int], expected: dict[str, list[bytes]]
    ) -> None:
        super().__init__(daemon=True)
        self._active_model = active_model
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
            found = self._active_model.score(BATCHES[place])
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
def models(
    original: Made, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Registry, list[str], str]:
    """Return a registry, the ids of data-only models, and the id of a compiled one."""
    registry = Registry(tmp_path_factory.mktemp("swapped"), TRUST)
    kept = [
        register(registry, trained(seed=seed, rounds=rounds), KEY).manifest.model_id
        for seed, rounds in ((3, 12), (4, 30), (5, 7))
    ]
    compiled = original.manifest
    files = {form: original.path(form).read_bytes() for form in ("ubj", "so", "mevt")}
    return registry, kept, registry.add(compiled, files, KEY).manifest.model_id


def _scores(predict: Callable[[Rows], Rows]) -> list[bytes]:
    return [predict(batch).tobytes() for batch in BATCHES]


@pytest.mark.slow
def test_a_hundred_swaps_under_full_speed_lose_and_spoil_nothing(
    models: tuple[Registry, list[str], str], record_property: Callable[[str, object], None]
) -> None:
    registry, kept, native = models
    expected = {name: _scores(registry.load(name, "mevt").predict) for name in kept}
    expected[native] = _scores(registry.load(native, "so").predict)
    active_model = ActiveModel(OPPORTUNITY, now_ns)
    active_model.put(registry.load(kept[0]), registry.get(kept[0]).manifest.baseline)
    numbers = itertools.count()
    callers = [Caller(active_model, numbers, expected) for _ in range(2)]
    for caller in callers:
        caller.start()
    try:
        for swap in range(1, SWAPS + 1):
            name, form = (kept[swap % len(kept)], "mevt") if swap % NATIVE_EVERY else (native, "so")
            active_model.put(registry.load(name, form), registry.get(name).manifest.baseline)
            _wait_until_used(active_model, callers)
            use = active_model.use()
            assert use is not None
            assert (use.model_id, use.failed) == (name, 0)
    finally:
        for caller in callers:
            caller.stop()
    record_property("worst_pause_us", worst := max(caller.worst_ns for caller in callers) / 1000)
    record_property("batches", batches := sum(len(caller.scored) for caller in callers))
    # A figure to read, not to judge.
    print(f"{SWAPS} swaps, {batches} batches, the worst call {worst:.0f} us")  # noqa: T201
    assert [caller.wrong for caller in callers] == [[], []]
    assert sorted(number for caller in callers for number in caller.scored) == list(range(batches))
    assert set().union(*(caller.seen for caller in callers)) == set(expected)


def _wait_until_used(active_model: ActiveModel, callers: list[Caller]) -> None:
    while (use := active_model.use()) is None or use.latency.calls < 2:
        assert all(caller.is_alive() for caller in callers)
        time.sleep(0.0005)
