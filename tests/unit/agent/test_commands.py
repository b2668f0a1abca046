"""``mev agent``, as its user types it."""

import asyncio
import logging
import time
from base64 import b64encode
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mev.agent import Agent, Level, ModelFolder, Site
from mev.agent.agent import UntrustedKeySetError, read_key_set
from mev.agent.strategies.arbitrage import Arbitrage
from mev.cli.agent import (
    Places,
    UnknownLocalAgentError,
    UnknownModuleError,
    make_command,
    status_text,
)
from mev.cli.main import app
from mev.core.errors import MevError, UnavailableError
from mev.wire.pb.control_pb2 import SHADOW, SwapModel
from tests.unit.agent.models import Shelf
from tests.unit.agent.plane import ME, Bench, Clock
from tests.unit.agent.site import FakeSite


def nowhere(_api: str | None) -> Site:
    raise UnavailableError("nothing runs here")


def invoke(folder: Path, *arguments: str) -> str:
    """Run the command; raise what it raises."""
    places = Places(
        agents=folder, models=folder / "models", log_level="INFO", log_repeats_per_minute=60
    )
    done = CliRunner().invoke(make_command(nowhere, lambda: places), arguments)
    if isinstance(done.exception, MevError):
        raise done.exception
    return done.output


def test_show_prints_what_is_obeyed_and_how_it_was_answered(bench: Bench) -> None:
    bench.activate()
    bench.send(bench.plane.level(Level.NO_NEW))
    bench.processor.save(bench.processor.state)
    shown = invoke(bench.folder, "show", "--id", ME)
    assert "ordered   NO_NEW" in shown
    (row,) = [line.split() for line in shown.splitlines() if line.startswith("level:all")]
    assert (row[1], row[-1]) == ("1.1002", "applied")


def test_show_names_the_models(tmp_path: Path) -> None:
    bench = Bench(tmp_path, models=ModelFolder(tmp_path / "models"))
    shelf = Shelf(tmp_path / "models", bench.plane.model_key)
    model = shelf.add(1)
    bench.send(bench.plane.command(model))
    bench.send(bench.plane.command(shelf.add(2, SHADOW)))
    bench.send(bench.plane.command(SwapModel(role=SHADOW)))
    bench.processor.save(bench.processor.state)
    shown = invoke(bench.folder, "show", "--id", ME).splitlines()
    assert f"model     {model.model_id[:12]} version v1, {model.model_path}" in shown
    assert "shadow    none" in shown


def test_an_agent_that_never_ran_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnknownLocalAgentError, match="a9"):
        invoke(tmp_path, "show", "--id", "a9")


def test_an_unknown_module_is_named_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(UnknownModuleError, match="there are arbitrage"):
        invoke(tmp_path, "run", "--module", "magic", "--id", ME)


def test_log_of_an_agent_is_bounded_by_the_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEV_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("LOG_REPEATS_PER_MINUTE", "2")
    root, record = logging.getLogger(), logging.makeLogRecord({"levelno": logging.WARNING})
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)
    CliRunner().invoke(app, ["agent", "run", "--module", "magic", "--id", ME])
    (handler,) = root.handlers
    assert [bool(handler.filter(record)) for _ in range(3)] == [True, True, False]


def test_keys_to_trust_are_read_raw_or_as_text(bench: Bench, tmp_path: Path) -> None:
    file, envelope = tmp_path / "keys", bench.plane.key_set
    for content in (envelope, b64encode(envelope) + b"\n"):
        file.write_bytes(content)
        assert read_key_set(file) == envelope
    for content in (b"", b"no key set"):
        file.write_bytes(content)
        with pytest.raises(UntrustedKeySetError, match=str(file)):
            read_key_set(file)
    with pytest.raises(UntrustedKeySetError, match="No such file"):
        read_key_set(tmp_path / "none")


async def test_the_status_line_says_what_matters(tmp_path: Path) -> None:
    site = FakeSite(Clock(time.time_ns()))
    await site.start()
    bot, stop = (
        Agent(Arbitrage(), ME, locate=site.locate, folder=tmp_path, clock=site.plane.clock),
        asyncio.Event(),
    )
    running = asyncio.create_task(bot.run(stop))
    await site.order(site.plane.level(Level.ACTIVE))
    await site.until(lambda report: bool(report.running.ordered_level == Level.ACTIVE.value))
    assert bot.session is not None
    assert status_text(bot.session).startswith(
        "a1 (arbitrage) HALTED: no lease since the agent started | no lease | 0 opportunities | 0"
        " decisions"
    )
    stop.set()
    await running
    await site.stop()
