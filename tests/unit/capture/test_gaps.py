"""The list of missing slots, and a node that does everything wrong for hours."""

import errno
import os
import random
from collections.abc import Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mev.capture.follow import SlotFollower, SlotOutcome
from mev.capture.gaps import Gaps, SlotGap
from mev.capture.model import BadInputError
from mev.capture.rpc import RpcClient
from mev.core.files import DiskFullError
from tests.unit.capture.node import Clock, Node, Reply
from tests.unit.capture.test_follow import BROKEN_CHUNK, HTML, NOT_GZIP, block, error

RANGES = st.tuples(st.integers(0, 60), st.integers(0, 9), st.sampled_from(["pruned", "late"]))
MINUTES_OF_SLOTS = 5 * 60 * 10 // 4
HOURS_OF_SLOTS = 2 * 3600 * 10 // 4
FIRST = 300_000_000


@given(st.lists(st.tuples(st.booleans(), RANGES), max_size=30))
def test_gaps_are_the_slots_added_and_not_removed(
    steps: list[tuple[bool, tuple[int, int, str]]],
) -> None:
    gaps = Gaps(None)
    expected: dict[int, str] = {}
    for is_added, (first, length, reason) in steps:
        slots = range(first, first + length + 1)
        if is_added:
            gaps.add(SlotGap(first, first + length, reason))
            expected |= dict.fromkeys(slots, reason)
        else:
            gaps.remove(first, first + length)
            expected = {slot: why for slot, why in expected.items() if slot not in slots}
    assert {slot: gap.reason for gap in gaps for slot in range(gap.first, gap.last + 1)} == expected
    assert gaps.slots == len(expected)
    assert all(one.last < other.first for one, other in pairwise(gaps))


def test_adjacent_slots_of_one_reason_are_one_gap() -> None:
    gaps = Gaps(None)
    assert [gaps.add(SlotGap(slot, slot, "late")) for slot in (5, 6, 7, 9)] == [
        True,
        False,
        False,
        True,
    ]
    assert list(gaps) == [SlotGap(5, 7, "late"), SlotGap(9, 9, "late")]


def test_gaps_survive(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "gaps.json"
    gaps = Gaps(path)
    gaps.add(SlotGap(5, 9, "late"))
    gaps.remove(7, 7)
    assert list(Gaps(path)) == [SlotGap(5, 6, "late"), SlotGap(8, 9, "late")]
    assert [each.name for each in path.parent.iterdir()] == ["gaps.json"]


def test_two_processes_may_change_the_list(tmp_path: Path) -> None:
    """One follows and finds gaps while another fills them: neither undoes what the other did."""
    follower = Gaps(tmp_path / "gaps.json")
    follower.add(SlotGap(5, 9, "late"))
    filler = Gaps(tmp_path / "gaps.json")
    follower.add(SlotGap(20, 20, "late"))
    filler.remove(5, 9)
    follower.add(SlotGap(21, 21, "late"))
    assert list(Gaps(tmp_path / "gaps.json")) == list(follower) == [SlotGap(20, 21, "late")]


def test_full_disk_keeps_the_list_and_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gaps = Gaps(tmp_path / "gaps.json")
    gaps.add(SlotGap(5, 5, "late"))

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFullError, match="cannot be written: No space left on device"):
        gaps.add(SlotGap(7, 7, "late"))
    monkeypatch.undo()
    assert list(Gaps(tmp_path / "gaps.json")) == [SlotGap(5, 5, "late")]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "7",
        '{"gaps": 7}',
        '{"gaps": [{"first": 9, "last": 5, "reason": ""}]}',
        '{"gaps": [{"first": "a", "last": 5, "reason": ""}]}',
    ],
)
def test_file_that_is_no_list_of_gaps_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "gaps.json"
    path.write_text(text)
    with pytest.raises(BadInputError, match="not a list of gaps"):
        Gaps(path)


class WorstNode:
    """Node that answers with every code and shape; the true state of each slot is fixed."""

    def __init__(self, node: Node, clock: Clock, slots: int, seed: int) -> None:
        self._random = random.Random(seed)
        self._clock = clock
        self.truth: dict[int, str] = {}
        self._pending: dict[int, list[Reply]] = {}
        self._parents: dict[int, int] = {}
        self._end = FIRST + slots
        parent = FIRST - 1
        for slot in range(FIRST, self._end):
            self.truth[slot] = self._random.choices(
                ["block", "skipped", "refused", "late", "never"], [900, 60, 2, 15, 2]
            )[0]
            self._parents[slot] = parent
            if self.truth[slot] != "skipped":
                parent = slot
        node.default |= {"getSlot": self.tip, "getBlock": self.answer}

    def _trouble(self) -> Reply:
        codes: list[Any] = [-32603, -32005, 429, -32429, -32000, -32099, "x", None]
        shapes: list[Reply] = [
            HTML,
            NOT_GZIP,
            BROKEN_CHUNK,
            (500, {}, b""),
            (503, {"Retry-After": "2"}, b""),
            (429, {}, b""),
        ]
        shapes += [
            {"error": "text"},
            {"error": {}},
            {"result": {}},
            {"result": "x"},
            {},
            (200, {}, b""),
            (200, {}, b"\xff"),
        ]
        shapes += [
            {"id": 2, "result": {"transactions": []}},
            {"result": {"parentSlot": 2**53, "transactions": []}},
        ]
        return self._random.choice([error(self._random.choice(codes)), self._random.choice(shapes)])

    def tip(self, _params: list[Any]) -> Reply:
        # An outage of 20 minutes in every hour.
        if self._clock.now_s % 3600 > 2400:
            return self._trouble()
        return {"result": self._end + 64 if self._random.random() < 0.9 else FIRST}

    def answer(self, params: list[Any]) -> Reply:
        slot, kind = params[0], self.truth[params[0]]
        if kind != "never" and self._random.random() < 0.02:
            return self._trouble()
        if kind == "late":
            late = self._pending.setdefault(
                slot, [error(-32004), error(-32014), {"result": None}, self._trouble()] * 2
            )
            if late:
                return late.pop()
        if kind == "skipped":
            refusal = error(self._random.choice([-32007, -32009, "-32007", -32009.0]))
            return self._random.choice([refusal, (500, {}, orjson.dumps(refusal))])
        if kind == "refused":
            return error(self._random.choice([-32001, -32011, -32015, -32602]))
        if kind == "never":
            return self._random.choice([error(-32004), self._trouble()])
        return block(slot, parent=self._parents[slot])


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def client(node: Node, clock: Clock) -> Iterator[RpcClient]:
    with closing(
        RpcClient(node.url, attempts=4, sleep=clock.sleep, requests_per_second=1e9)
    ) as client:
        yield client


@pytest.mark.parametrize(
    "slots", [MINUTES_OF_SLOTS, pytest.param(HOURS_OF_SLOTS, marks=pytest.mark.slow)]
)
def test_node_that_does_everything_wrong_for_hours_loses_no_slot_untold(
    node: Node, clock: Clock, client: RpcClient, slots: int
) -> None:
    worst = WorstNode(node, clock, slots, seed=7)
    lines: list[str] = []
    follower = SlotFollower(client, report=lines.append, sleep=clock.sleep, clock=clock.read)
    outcomes: dict[int, SlotOutcome] = {}
    lowest = FIRST
    for each in follower.blocks(FIRST, stop_after=FIRST + slots - 1):
        for slot in range(each.slot, each.last + 1):
            assert slot not in outcomes
            outcomes[slot] = each.outcome
        while lowest in outcomes:
            lowest += 1
        certain = lowest  # skipped slots are certain only once a later block was read
        while outcomes.get(certain - 1) is SlotOutcome.SKIPPED:
            certain -= 1
        assert certain <= each.next_slot <= lowest
    expected = {
        "block": SlotOutcome.READ,
        "late": SlotOutcome.READ,
        "skipped": SlotOutcome.SKIPPED,
        "refused": SlotOutcome.MISSING,
        "never": SlotOutcome.MISSING,
    }
    assert outcomes == {slot: expected[kind] for slot, kind in worst.truth.items()}
    assert all("\n" not in line for line in lines)
