"""Levels, leases and the step-down: what an agent may do, whatever comes in whatever order."""

from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mev.agent.level import EVERYONE, Level, ScopeLevels, Temporary, ordered_level
from mev.core.clock import steady_clock
from mev.wire.pb.control_pb2 import SetLevel, Target
from tests.unit.agent.plane import ME, MODULE, SECOND, START_NS, Bench

AGENT = Target(agent_ids=[ME])
TEAM = Target(modules=[MODULE])


def test_without_an_order_nothing_is_allowed(bench: Bench) -> None:
    bench.send(bench.plane.lease())
    assert bench.level() == Level.HALTED
    bench.send(bench.plane.level(Level.ACTIVE, AGENT))
    assert bench.level() == Level.HALTED


def test_without_a_lease_nothing_is_allowed(bench: Bench) -> None:
    bench.send(bench.plane.level(Level.ACTIVE))
    assert bench.level() == Level.HALTED
    assert bench.processor.standing().stepped_down == "no lease since the agent started"


def test_the_lowest_scope_counts(bench: Bench) -> None:
    bench.activate()
    bench.send(bench.plane.level(Level.NO_NEW, TEAM))
    bench.send(bench.plane.level(Level.REDUCING, AGENT))
    assert bench.level() == Level.REDUCING
    bench.send(bench.plane.level(Level.ACTIVE, AGENT))
    assert bench.level() == Level.NO_NEW
    bench.send(bench.plane.level(Level.ACTIVE, Target(modules=[MODULE], agent_ids=[ME])))
    assert bench.level() == Level.ACTIVE


def test_a_lease_that_runs_out_steps_down_by_age(bench: Bench) -> None:
    bench.activate()
    assert [bench.wait(seconds) for seconds in (9.9, 0.1, 29.9, 0.1, 89.9, 0.1)] == [
        Level.ACTIVE,
        Level.NO_NEW,
        Level.NO_NEW,
        Level.REDUCING,
        Level.REDUCING,
        Level.HALTED,
    ]


def test_a_lease_that_ran_out_counts_before_anybody_looks(bench: Bench) -> None:
    bench.activate()
    bench.clock.advance(10)
    assert bench.level() == Level.NO_NEW


def test_the_step_down_latches_until_a_newer_order(bench: Bench) -> None:
    bench.activate()
    bench.wait(45)
    bench.send(bench.plane.lease(seconds=1000))
    assert bench.level() == Level.REDUCING
    assert "lease ran out" in bench.processor.standing().stepped_down
    assert bench.wait(200) == Level.REDUCING
    bench.send(bench.plane.level(Level.ACTIVE))
    assert bench.level() == Level.ACTIVE
    assert bench.processor.standing().stepped_down == ""


def test_a_renewal_in_time_to_be_missed_latches_too(bench: Bench) -> None:
    """The lease runs out and is renewed before the agent looks at the clock."""
    bench.activate()
    bench.clock.advance(10.5)
    bench.send(bench.plane.lease())
    assert bench.level() == Level.NO_NEW


def test_a_lease_that_was_decided_too_late_does_not_raise(bench: Bench) -> None:
    """The lease runs out while its renewal is on its way to the disk."""
    bench.activate()
    renewed = bench.plane.sealed(bench.plane.lease())
    bench.clock.advance(9)
    transition = bench.processor.decide(renewed, bench.clock())
    bench.clock.advance(1.5)
    assert not bench.processor.holds(transition)
    assert bench.strategy.levels[-1] == Level.NO_NEW
    bench.send_bytes(renewed)
    assert bench.level() == Level.NO_NEW


def test_the_latch_outlives_the_process(bench: Bench) -> None:
    bench.activate()
    bench.wait(15)
    state = bench.processor.pending_save()
    assert state is not None
    bench.processor.save(state)
    bench.restart()
    bench.send(bench.plane.lease())
    assert bench.level() == Level.NO_NEW


def test_a_crash_longer_than_the_lease_steps_down(bench: Bench) -> None:
    bench.activate()
    bench.clock.advance(200)
    bench.restart()
    bench.send(bench.plane.lease())
    assert bench.level() == Level.HALTED


def test_an_orderly_stop_does_not_step_down(bench: Bench) -> None:
    bench.activate()
    bench.processor.stop("stopped by operator")
    assert (bench.level(), bench.processor.standing().stepped_down) == (
        Level.HALTED,
        "stopped by operator",
    )
    state = bench.processor.pending_save()
    assert state is not None
    bench.processor.save(state)
    bench.clock.advance(200)
    bench.restart()
    assert bench.level() == Level.HALTED
    bench.send(bench.plane.lease())
    assert bench.level() == Level.ACTIVE


def test_an_order_from_before_the_step_down_does_not_raise(bench: Bench) -> None:
    bench.activate()
    early = bench.plane.sealed(bench.plane.level(Level.ACTIVE))
    bench.wait(15)
    bench.send(bench.plane.lease())
    assert bench.send_bytes(early) == [""]
    assert bench.level() == Level.NO_NEW


def test_a_lowering_order_does_not_lift_the_latch(bench: Bench) -> None:
    bench.activate()
    bench.wait(15)
    bench.send(bench.plane.lease(seconds=1000))
    bench.send(bench.plane.level(Level.HALTED, until_s=10))
    assert bench.level() == Level.HALTED
    assert bench.wait(10) == Level.NO_NEW


def test_an_order_nobody_approved_does_not_lift_the_latch(bench: Bench) -> None:
    bench.activate()
    bench.wait(45)
    bench.send(bench.plane.lease(seconds=1000))
    bench.send(bench.plane.level(Level.ACTIVE, approvers=()))
    assert bench.level() == Level.REDUCING


def test_an_order_that_ends_does_not_lift_the_latch(bench: Bench) -> None:
    bench.activate()
    bench.wait(200)
    bench.send(bench.plane.lease(seconds=1000))
    assert bench.send(bench.plane.level(Level.NO_NEW, until_s=10)) == [""]
    assert bench.level() == Level.HALTED
    assert bench.wait(10) == Level.HALTED


def test_a_second_lease_that_runs_out_does_not_raise(bench: Bench) -> None:
    bench.activate()
    assert bench.wait(200) == Level.HALTED
    bench.send(bench.plane.lease(seconds=5))
    assert bench.wait(6) == Level.HALTED


def test_a_step_down_to_what_is_ordered_anyway_is_none(bench: Bench) -> None:
    bench.activate()
    bench.send(bench.plane.level(Level.NO_NEW))
    assert bench.wait(15) == Level.NO_NEW
    assert bench.processor.standing().stepped_down == ""
    assert bench.wait(100) == Level.REDUCING
    assert bench.processor.standing().stepped_down


def test_setting_the_clock_back_does_not_lengthen_a_lease() -> None:
    day, passed = [START_NS], [5 * SECOND]
    clock = steady_clock(lambda: day[0], lambda: passed[0])
    day[0], passed[0] = START_NS - 3600 * SECOND, 15 * SECOND
    assert clock() == START_NS + 10 * SECOND
    day[0] = START_NS + 20 * SECOND
    assert clock() == START_NS + 20 * SECOND


def test_a_level_returns_by_itself(bench: Bench) -> None:
    bench.activate()
    bench.send(bench.plane.lease(seconds=300))
    bench.send(bench.plane.level(Level.NO_NEW, until_s=60))
    bench.send(bench.plane.level(Level.HALTED, until_s=20))
    assert [bench.level(), bench.wait(20), bench.wait(39.9), bench.wait(0.1)] == [
        Level.HALTED,
        Level.NO_NEW,
        Level.NO_NEW,
        Level.ACTIVE,
    ]
    assert bench.strategy.levels[-3:] == [Level.HALTED, Level.NO_NEW, Level.ACTIVE]


def test_a_level_does_not_return_above_what_is_ordered_elsewhere(bench: Bench) -> None:
    bench.activate()
    bench.send(bench.plane.lease(seconds=300))
    bench.send(bench.plane.level(Level.HALTED, AGENT, until_s=20))
    bench.send(bench.plane.level(Level.REDUCING))
    assert bench.wait(20) == Level.REDUCING


def test_raising_for_a_while_is_refused(bench: Bench) -> None:
    bench.activate()
    bench.send(bench.plane.level(Level.NO_NEW))
    assert bench.send(bench.plane.level(Level.ACTIVE, until_s=60)) == ["bad_params"]
    assert bench.level() == Level.NO_NEW


@pytest.mark.parametrize("level", [0, 5, 99])
def test_an_unknown_level_is_refused(bench: Bench, level: int) -> None:
    bench.activate()
    command = bench.plane.command(SetLevel())
    command.level.level = level  # type: ignore[assignment]
    assert bench.send(command) == ["bad_params"]
    assert bench.level() == Level.ACTIVE


def test_many_temporary_levels_stay_few() -> None:
    order = ScopeLevels(Level.ACTIVE)
    for step in range(100):
        order = order.lowered(Level.HALTED, START_NS + (1000 - step) * SECOND)
    assert len(order.temporary) <= 9
    assert order.temporary[0] == Temporary(Level.HALTED, START_NS + 1000 * SECOND)


SCOPES = {"level:all": Target(all=True), "level:module:arbitrage": TEAM, "level:agent:a1": AGENT}
levels = st.sampled_from(list(Level))
steps = st.one_of(
    st.tuples(
        st.just("level"),
        st.sampled_from(sorted(SCOPES)),
        levels,
        st.one_of(st.none(), st.integers(1, 90)),
    ),
    st.tuples(st.just("lease"), st.integers(0, 40)),
    st.tuples(st.just("wait"), st.integers(0, 60)),
    st.tuples(st.just("replay"), st.integers(0, 30)),
    st.tuples(st.just("restart")),
)


@dataclass
class Model:
    """Reference model of the allowed level that records every second of every lowering."""

    lasting: dict[str, Level] = field(default_factory=dict)
    until: dict[str, list[tuple[Level, int]]] = field(default_factory=dict)
    lease_ns: int | None = None
    latch: Level = Level.ACTIVE

    def age(self, now_ns: int) -> None:
        """Step down for a lease that has run out."""
        if self.lease_ns is not None and now_ns >= self.lease_ns:
            age_s = (now_ns - self.lease_ns) / SECOND
            self.latch = min(
                self.latch,
                Level.HALTED if age_s >= 120 else Level.REDUCING if age_s >= 30 else Level.NO_NEW,
            )

    def order(self, scope: str, level: Level, until_ns: int | None, now_ns: int) -> None:
        """Note an accepted order."""
        if until_ns is not None:
            self.until.setdefault(scope, []).append((level, until_ns))
            return
        self.lasting[scope], self.until[scope] = level, []
        if level > self.latch:
            self.latch = Level.ACTIVE
            self.age(now_ns)

    def most(self, now_ns: int) -> Level:
        """Return the highest level that may be in force."""
        if self.lease_ns is None or EVERYONE not in self.lasting:
            return Level.HALTED
        newest = [
            next((level for level, until in reversed(ends) if now_ns < until), Level.ACTIVE)
            for ends in self.until.values()
        ]
        return min([self.latch, *self.lasting.values(), *newest])


@given(st.lists(steps, max_size=30))
def test_no_order_of_events_allows_more_than_the_least_that_is_allowed(
    events: list[tuple[object, ...]],
) -> None:
    with TemporaryDirectory() as folder:
        bench, model = Bench(Path(folder)), Model()
        sent: list[bytes] = []
        for event in events:
            match event:
                case "wait", int(seconds):
                    bench.clock.advance(seconds)
                case "lease", int(seconds):
                    model.age(bench.clock())
                    bench.send(bench.plane.lease(seconds=seconds))
                    model.lease_ns = bench.clock() + seconds * SECOND
                case "level", str(scope), Level() as level, seconds:
                    model.age(bench.clock())
                    command = bench.plane.level(
                        level, SCOPES[scope], seconds if isinstance(seconds, int) else None
                    )
                    sent.append(bench.plane.sealed(command))
                    if bench.send_bytes(sent[-1]) == [""]:
                        model.order(scope, level, command.level.until_ns or None, bench.clock())
                case "replay", int(which) if which < len(sent):
                    bench.send_bytes(sent[which])
                case ("restart",):
                    bench.restart()
            model.age(bench.clock())
            assert bench.level() <= model.most(bench.clock())


def test_the_model_of_the_property_is_tight() -> None:
    """Otherwise the property above would hold of anything."""
    model = Model(lasting={EVERYONE: Level.ACTIVE}, lease_ns=START_NS + SECOND)
    assert (
        model.most(START_NS)
        == Level.ACTIVE
        == ordered_level({EVERYONE: ScopeLevels(Level.ACTIVE)}, START_NS)
    )
    model.age(START_NS + SECOND)
    assert model.most(START_NS + SECOND) == Level.NO_NEW
