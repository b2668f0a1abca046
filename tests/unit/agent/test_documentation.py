"""Tests that the examples of docs/agents.md run and that it names every code."""

import asyncio
import json
import re
import time
from pathlib import Path

import pytest

from mev.agent import Agent, Level, refusal
from mev.crypto import errors
from mev.wire.pb.events_pb2 import Opportunity
from tests.services.waits import until_async
from tests.unit.agent.models import Shelf, opportunities, scores
from tests.unit.agent.plane import Clock
from tests.unit.agent.site import FakeSite

PAGE = (Path(__file__).parents[3] / "docs" / "agents.md").read_text()
RUN = "asyncio.run(agent.run())"
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
NOT_OF_COMMANDS = {
    "refused",
    "rejected_by_policy",
    "envelope_refused",
    "old_key_set",
    "invalid_key_set",
}


def run_example(*examples: str, site: FakeSite, monkeypatch: pytest.MonkeyPatch) -> Agent:
    """Run what the page prints up to `asyncio.run`, and return the agent that it makes."""
    address = site.locate()
    monkeypatch.setenv("MEV_API", address.api)
    monkeypatch.setenv("MEV_AGENT_KEY", address.api_key)
    monkeypatch.setenv("KAFKA_BROKERS", address.brokers.servers)
    monkeypatch.setenv("KAFKA_OPTIONS", json.dumps(address.brokers.options))
    names: dict[str, object] = {}
    for example in examples:
        exec(compile(example.replace(RUN, ""), "docs/agents.md", "exec"), names)
    agent = names["agent"]
    assert isinstance(agent, Agent)
    return agent


async def test_the_example_trades(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    example, _ = EXAMPLES
    assert example.strip().endswith(RUN)
    site = FakeSite(Clock(time.time_ns()))
    await site.start()
    agent = run_example(example, site=site, monkeypatch=monkeypatch)
    stop = asyncio.Event()
    running = asyncio.create_task(agent.run(stop))
    await site.order(site.plane.level(Level.ACTIVE))
    await site.until(lambda report: bool(report.running.ordered_level == Level.ACTIVE.value))
    await site.send(site.plane.lease(seconds=100))
    await site.until(lambda report: report.running.level == Level.ACTIVE.value)
    await site.see(
        [
            Opportunity(id="small", expected_profit_lamports=1),
            Opportunity(id="good", expected_profit_lamports=6_000_000),
        ]
    )
    await until_async(lambda: site.bundles)
    stop.set()
    await running
    await site.stop()
    assert [bundle.bundle_id for bundle in site.bundles] == ["b-good"]


async def test_the_example_with_a_model_takes_what_it_scores_high(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    site = FakeSite(Clock(time.time_ns()))
    await site.start()
    shelf, seen = Shelf(tmp_path / "models", site.plane.model_key), opportunities(50)
    agent = run_example(*EXAMPLES, site=site, monkeypatch=monkeypatch)
    stop = asyncio.Event()
    running = asyncio.create_task(agent.run(stop))
    await site.order(site.plane.level(Level.ACTIVE))
    await site.until(lambda report: bool(report.running.ordered_level == Level.ACTIVE.value))
    await site.send(site.plane.lease(seconds=100))
    await site.answer(await site.order(site.plane.command(shelf.add(10))))
    await site.see(seen)
    wanted = {
        f"b-{one.id}" for one, score in zip(seen, scores(10, seen), strict=True) if score >= 0.5
    }
    assert 0 < len(wanted) < 50
    await until_async(lambda: len(site.bundles), lambda count: count >= len(wanted))
    stop.set()
    await running
    await site.stop()
    assert {bundle.bundle_id for bundle in site.bundles} == wanted


def test_every_code_of_a_refusal_is_explained() -> None:
    codes = {
        cls.code
        for module in (refusal, errors)
        for cls in vars(module).values()
        if isinstance(cls, type)
        and issubclass(cls, refusal.CommandRefusedError | errors.EnvelopeError)
    }
    assert {code for code in codes - NOT_OF_COMMANDS if f"`{code}`" not in PAGE} == set()
