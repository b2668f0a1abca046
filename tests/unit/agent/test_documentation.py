"""What docs/agents.md shows works as it stands, and names every code there is."""

import asyncio
import re
import time
from pathlib import Path

from mev.agent import Agent, Level, refusal
from mev.crypto import errors
from mev.wire.pb.events_pb2 import Opportunity
from tests.unit.agent.models import Shelf, opportunities, scores
from tests.unit.agent.plane import Clock
from tests.unit.agent.site import FakeSite

PAGE = (Path(__file__).parents[3] / "docs" / "agents.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
NOT_OF_COMMANDS = {"refused", "rejected_by_policy", "envelope_refused", "old_key_set", "invalid_key_set"}


async def test_the_example_trades(tmp_path: Path) -> None:
    example, _ = EXAMPLES
    code, _, last = example.strip().rpartition("\n")
    assert last == "asyncio.run(agent.run())"
    site = FakeSite(Clock(time.time_ns()))
    await site.start()
    names: dict[str, object] = {"locate": site.locate, "folder": tmp_path}
    exec(compile(code, "docs/agents.md", "exec"), names)
    agent, stop = names["agent"], asyncio.Event()
    assert isinstance(agent, Agent)
    running = asyncio.create_task(agent.run(stop))
    await site.order(site.plane.level(Level.ACTIVE))
    await site.until(lambda report: bool(report.running.ordered_level == Level.ACTIVE.value))
    await site.send(site.plane.lease(seconds=100))
    await site.until(lambda report: report.running.level == Level.ACTIVE.value)
    await site.see([Opportunity(id="small", expected_profit_lamports=1), Opportunity(id="good", expected_profit_lamports=6_000_000)])
    async with asyncio.timeout(10):
        while not site.bundles:  # noqa: ASYNC110 - callbacks of a thread
            await asyncio.sleep(0.005)
    stop.set()
    await running
    await site.stop()
    assert [bundle.bundle_id for bundle in site.bundles] == ["b-good"]


async def test_the_example_with_a_model_takes_what_it_scores_high(tmp_path: Path) -> None:
    site = FakeSite(Clock(time.time_ns()))
    await site.start()
    shelf, seen = Shelf(tmp_path / "models", site.plane.key), opportunities(50)
    names: dict[str, object] = {"Path": Path, "locate": site.locate, "folder": tmp_path, "models": shelf.folder}
    exec(compile(EXAMPLES[1], "docs/agents.md", "exec"), names)
    agent, stop = names["agent"], asyncio.Event()
    assert isinstance(agent, Agent)
    running = asyncio.create_task(agent.run(stop))
    await site.order(site.plane.level(Level.ACTIVE))
    await site.until(lambda report: bool(report.running.ordered_level == Level.ACTIVE.value))
    await site.send(site.plane.lease(seconds=100))
    await site.answer(await site.order(site.plane.command(shelf.add(10))))
    await site.see(seen)
    wanted = {f"b-{one.id}" for one, score in zip(seen, scores(10, seen), strict=True) if score >= 0.5}
    assert 0 < len(wanted) < 50
    async with asyncio.timeout(10):
        while len(site.bundles) < len(wanted):  # noqa: ASYNC110 - callbacks of a thread
            await asyncio.sleep(0.005)
    stop.set()
    await running
    await site.stop()
    assert {bundle.bundle_id for bundle in site.bundles} == wanted


def test_every_code_of_a_refusal_is_explained() -> None:
    codes = {
        cls.code
        for module in (refusal, errors)
        for cls in vars(module).values()
        if isinstance(cls, type) and issubclass(cls, refusal.RefusedError | errors.EnvelopeError)
    }
    assert {code for code in codes - NOT_OF_COMMANDS if f"`{code}`" not in PAGE} == set()
