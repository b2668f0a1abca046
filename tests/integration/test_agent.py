"""Tests of a whole agent: real signatures, a real broker on loopback, a manual clock."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import pytest

from mev.agent import Agent, Decision, Level, Strategy
from mev.agent.agent import UntrustedKeySetError
from mev.agent.enrolment import EnrolmentRefusedError
from mev.agent.folder import AgentFolder, AgentRunsError
from mev.agent.kafka_clients import Inbox, KafkaClients
from mev.agent.model_source import ModelSource
from mev.agent.state import AgentState
from mev.agent.strategies.arbitrage import Arbitrage
from mev.agent.strategy import Exposure
from mev.bus.kafka import PublishError
from mev.crypto.envelope import seal
from mev.crypto.keys import SigningKey
from mev.simulate.model import Market
from mev.wire.pb.control_pb2 import ACK, ACTIVE, NACK, STATUS, ModuleAction, Report
from mev.wire.pb.events_pb2 import Bundle, Opportunity
from mev.wire.registry import KafkaRecord
from mev.wire.topics import REPORT
from tests.services.waits import until_async
from tests.unit.agent.plane import ME, MODULE, Clock, Recorder
from tests.unit.agent.site import TIMEOUT_S, FakeSite

ALL = ("OPENS", "REDUCES", "CANCELS")


@pytest.fixture
async def site() -> AsyncIterator[FakeSite]:
    """Give a control plane that is up."""
    found = FakeSite(Clock(time.time_ns()))
    await found.start()
    yield found
    await found.stop()


class Eager(Strategy):
    """Opens, reduces and cancels whatever level is in force."""

    module = MODULE

    def on_opportunity(self, opportunity: Opportunity, score: float | None) -> Iterable[Decision]:
        for exposure in Exposure:
            name = f"{exposure.name}-{opportunity.id}"
            yield Decision(
                exposure, Bundle(bundle_id=name, opportunity_id=opportunity.id, simulated=True)
            )


def agent(
    site: FakeSite,
    folder: Path,
    trust: bytes | None = None,
    strategy: Strategy | None = None,
    *,
    models: ModelSource | None = None,
    timeout_s: float = TIMEOUT_S,
) -> Agent:
    return Agent(
        strategy or Arbitrage(),
        ME,
        locate=site.locate,
        folder=folder,
        trust=trust,
        models=models,
        clock=site.plane.clock,
        timeout_s=timeout_s,
    )


@asynccontextmanager
async def running(
    site: FakeSite,
    folder: Path,
    trust: bytes | None = None,
    strategy: Strategy | None = None,
    *,
    models: ModelSource | None = None,
    timeout_s: float = TIMEOUT_S,
) -> AsyncIterator[Agent]:
    """Run an agent, and stop it in order."""
    bot, stop = (
        agent(site, folder, trust, strategy, models=models, timeout_s=timeout_s),
        asyncio.Event(),
    )
    async with asyncio.TaskGroup() as group:
        group.create_task(bot.run(stop))
        try:
            await site.until(lambda report: report.result == STATUS)
            yield bot
        finally:
            stop.set()


async def activate(site: FakeSite) -> None:
    await site.order(site.plane.level(Level.ACTIVE))
    await site.send(site.plane.lease(seconds=100))
    await site.until(at(Level.ACTIVE))


def held(report: Report) -> Level:
    return Level(int(report.running.level))


def at(level: Level) -> Callable[[Report], bool]:
    return lambda report: held(report) == level


def opportunities(count: int) -> list[Opportunity]:
    market = Market(1, 100.0)
    return [market.step()[1] for _ in range(count)]


async def test_an_agent_enrols_and_waits_for_orders(site: FakeSite, tmp_path: Path) -> None:
    async with running(site, tmp_path):
        report = await site.until(lambda report: report.result == STATUS)
    assert (report.agent_id, report.module, held(report), report.running.key_epoch) == (
        ME,
        MODULE,
        Level.HALTED,
        1,
    )
    assert site.enrolled[ME]["policy_types"] == ["risk"]
    declared = cast("list[dict[str, object]]", site.enrolled[ME]["actions"])
    assert {action["name"] for action in declared} == {
        "set_min_profit",
        "reset_counters",
        "cancel_all",
    }


async def test_a_command_is_obeyed_and_answered(site: FakeSite, tmp_path: Path) -> None:
    async with running(site, tmp_path):
        await activate(site)
        action = ModuleAction(module=MODULE, action="set_min_profit", params_json='{"lamports": 7}')
        report = await site.answer(await site.order(site.plane.command(action)))
        assert (report.result, report.detail) == (ACK, "takes 0.000000007 SOL or more")
        assert report.received_at_ns <= report.applied_at_ns <= report.reported_at_ns


async def test_a_wrong_command_is_refused_by_name(site: FakeSite, tmp_path: Path) -> None:
    async with running(site, tmp_path):
        action = ModuleAction(
            module=MODULE, action="set_min_profit", params_json='{"lamports": "much"}'
        )
        report = await site.answer(await site.order(site.plane.command(action)))
        assert (report.result, report.reason_code) == (NACK, "bad_params")


async def test_a_forged_command_is_reported_and_not_obeyed(site: FakeSite, tmp_path: Path) -> None:
    async with running(site, tmp_path) as bot:
        await activate(site)
        await site.send_bytes(
            seal(site.plane.level(Level.HALTED), SigningKey.generate("thief")).SerializeToString()
        )
        report = await site.until(lambda report: report.reason_code == "unknown_key")
        assert (report.result, report.command_id, held(report)) == (NACK, "", Level.ACTIVE)
        assert bot.session is not None
        assert bot.session.processor.level() == Level.ACTIVE


async def test_bundles_are_published_only_while_active(site: FakeSite, tmp_path: Path) -> None:
    async with running(site, tmp_path) as bot:
        assert bot.session is not None
        counts = bot.session.trader.counts
        await until_async(lambda: bot.session is not None and not bot.session.control_plane.problem)
        await site.see(opportunities(50))
        await until_async(lambda: counts.opportunities == 50)
        await activate(site)
        await site.see(opportunities(20))
        await until_async(
            lambda: len(site.bundles) == counts.decisions > 0 and counts.opportunities == 70
        )
        assert {bundle.agent_id for bundle in site.bundles} == {ME}
        assert {bundle.opportunity_id for bundle in site.bundles} <= {
            one.id for one in opportunities(20)
        }
        assert all(bundle.simulated for bundle in site.bundles)


@pytest.mark.parametrize(
    ("level", "allowed"),
    [
        (Level.HALTED, {"CANCELS"}),
        (Level.REDUCING, {"CANCELS", "REDUCES"}),
        (Level.NO_NEW, {"CANCELS", "REDUCES"}),
        (Level.ACTIVE, set(ALL)),
    ],
)
async def test_a_strategy_cannot_go_beyond_its_level(
    site: FakeSite, tmp_path: Path, level: Level, allowed: set[str]
) -> None:
    async with running(site, tmp_path, strategy=Eager()) as bot:
        assert bot.session is not None
        counts = bot.session.trader.counts
        await activate(site)
        answered = await site.answer(await site.order(site.plane.level(level)))
        assert held(answered) == level
        await site.see(opportunities(1))
        await until_async(lambda: len(site.bundles) == len(allowed) and counts.opportunities == 1)
        assert {bundle.bundle_id.split("-")[0] for bundle in site.bundles} == allowed
        assert counts.withheld == len(ALL) - len(allowed)


async def test_what_waits_for_brokers_that_were_left_is_given_back(site: FakeSite) -> None:
    inbox: Inbox[object] = Inbox()
    link = KafkaClients(inbox, [], lambda _: None, site.plane.clock, timeout_s=TIMEOUT_S)
    record: list[KafkaRecord] = [{"key": b"", "value": b"report"}]
    with pytest.raises(PublishError, match="not connected yet"):
        await link.publish(REPORT, record)
    await link.open(site.brokers, 0)
    await link.publish(REPORT, record)
    await site.stop()
    waiting = asyncio.create_task(link.publish(REPORT, record))
    await asyncio.sleep(0)
    await site.start()
    await link.open(site.brokers, 0)
    with pytest.raises(PublishError, match="were left"):
        await waiting
    await link.publish(REPORT, record)
    await link.close()


async def test_an_agent_steps_down_alone_and_stays_down(site: FakeSite, tmp_path: Path) -> None:
    async with running(site, tmp_path):
        await activate(site)
        site.plane.clock.advance(101)
        await site.until(at(Level.NO_NEW))
        site.plane.clock.advance(30)
        await site.until(at(Level.REDUCING))
        site.plane.clock.advance(90)
        await site.until(
            lambda report: (
                at(Level.HALTED)(report) and "lease ran out" in report.running.stepped_down
            )
        )
        site.reports.clear()
        await site.send(site.plane.lease(seconds=100))
        renewed = await site.until(
            lambda report: report.running.lease_expires_at_ns > site.plane.clock()
        )
        assert (held(renewed), renewed.running.ordered_level) == (Level.HALTED, ACTIVE)
        await site.order(site.plane.level(Level.ACTIVE))
        await site.until(at(Level.ACTIVE))


async def test_an_agent_steps_down_on_time_while_its_brokers_take_everything_and_answer_nothing(
    site: FakeSite, tmp_path: Path
) -> None:
    strategy = Recorder()
    async with running(site, tmp_path, strategy=strategy, timeout_s=30) as bot:
        await activate(site)
        await site.mute()
        assert bot.session is not None
        kafka = bot.session.kafka
        await until_async(
            lambda: kafka.opening
        )  # a call of the client hangs for longer than this test waits
        for seconds, level in ((101, Level.NO_NEW), (30, Level.REDUCING), (90, Level.HALTED)):
            site.plane.clock.advance(seconds)
            await until_async(
                lambda level=level: strategy.levels[-1] == level,  # type: ignore[misc]
            )


async def test_an_agent_steps_down_on_time_while_its_disk_hangs_and_stays_down(
    site: FakeSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strategy, hangs, mended, save = (
        Recorder(),
        threading.Event(),
        threading.Event(),
        AgentFolder.save,
    )

    def hang(folder: AgentFolder, state: AgentState) -> None:
        hangs.set()
        mended.wait(TIMEOUT_S)
        save(folder, state)

    async with running(site, tmp_path, strategy=strategy):
        await activate(site)
        renewed = site.plane.lease(seconds=300)
        monkeypatch.setattr(AgentFolder, "save", hang)
        try:
            await site.send(renewed)
            await until_async(hangs.is_set)
            site.plane.clock.advance(101)
            await site.until(at(Level.NO_NEW))
        finally:
            mended.set()
        report = await site.until(
            lambda report: report.running.lease_expires_at_ns == renewed.expires_at_ns
        )
        assert (held(report), strategy.levels[-1]) == (Level.NO_NEW, Level.NO_NEW)


async def test_a_stop_is_the_last_report(site: FakeSite, tmp_path: Path) -> None:
    async with running(site, tmp_path):
        await activate(site)
    await site.until(lambda report: report.running.stepped_down == "stopped by operator")
    assert held(site.reports[-1]) == Level.HALTED


async def test_a_restarted_agent_goes_on_and_answers_nothing_twice(
    site: FakeSite, tmp_path: Path
) -> None:
    async with running(site, tmp_path):
        await activate(site)
        first = await site.until(lambda report: report.result == ACK)
        await until_async(lambda: "1" in (tmp_path / ME / "counter").read_text())
    counters = [report.agent_counter for report in site.reports]
    site.reports.clear()
    async with running(site, tmp_path):
        await site.send(site.plane.lease(seconds=100))
        await site.until(at(Level.ACTIVE))
        assert not [report for report in site.reports if report.command_id == first.command_id]
    counters += [report.agent_counter for report in site.reports]
    assert counters == sorted(set(counters))


async def test_an_agent_follows_a_control_plane_that_moves(site: FakeSite, tmp_path: Path) -> None:
    async with running(site, tmp_path):
        await activate(site)
        await site.stop()
        missed = site.plane.level(Level.REDUCING)
        site.in_force.append(missed)
        site.reports.clear()
        await site.start()
        assert held(await site.answer(missed.id)) == Level.REDUCING
        heard = await site.answer(await site.order(site.plane.level(Level.NO_NEW)))
        assert held(heard) == Level.NO_NEW


async def test_keys_are_rotated_while_it_runs(site: FakeSite, tmp_path: Path) -> None:
    async with running(site, tmp_path):
        await site.send_bytes(site.plane.rotate())
        await site.until(lambda report: report.running.key_epoch == 2)
        await activate(site)


async def test_an_agent_waits_for_its_control_plane(site: FakeSite, tmp_path: Path) -> None:
    await site.order(site.plane.level(Level.ACTIVE))
    await site.stop()
    bot, stop = agent(site, tmp_path), asyncio.Event()
    task = asyncio.create_task(bot.run(stop))
    await asyncio.sleep(0)
    await site.start()
    await site.until(lambda report: report.running.ordered_level == ACTIVE)
    stop.set()
    await task


async def test_one_id_runs_once(site: FakeSite, tmp_path: Path) -> None:
    async with running(site, tmp_path):
        with pytest.raises(AgentRunsError):
            await agent(site, tmp_path).run()


async def test_the_id_of_another_key_is_refused(site: FakeSite, tmp_path: Path) -> None:
    async with running(site, tmp_path / "one"):
        with pytest.raises(EnrolmentRefusedError, match="another key"):
            await agent(site, tmp_path / "two").run()


async def test_keys_other_than_the_pinned_ones_are_refused(site: FakeSite, tmp_path: Path) -> None:
    other = FakeSite(site.plane.clock)
    with pytest.raises(UntrustedKeySetError):
        await agent(site, tmp_path, trust=other.plane.key_set).run()


async def test_keys_that_follow_from_the_pinned_ones_are_taken(
    site: FakeSite, tmp_path: Path
) -> None:
    pinned = site.plane.key_set
    site.plane.rotate()
    async with running(site, tmp_path, trust=pinned):
        await site.until(lambda report: report.running.key_epoch == 2)
        await activate(site)
