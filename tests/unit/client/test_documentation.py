"""Tests that the examples of docs/python-client.md run and that it names every error and option."""

import asyncio
import re
from pathlib import Path

import pytest
from typer import Typer
from typer.main import get_command

from mev.cli.tail import make_tail
from mev.client import errors
from mev.core.errors import MevError
from mev.wire.frames import Run
from mev.wire.pb.events_pb2 import Opportunity
from tests.services.waits import until_async
from tests.unit.client.server import KEY, Server

PAGE = (Path(__file__).parents[3] / "docs" / "python-client.md").read_text()
NOT_OF_A_STREAM = {
    "StreamError",
    "BadUrlError",
    "BadCursorError",
    "BadOptionError",
    "NotAServerError",
    "MessageTooBigError",
}


async def test_the_example_prints_events(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    code, _, last = example.strip().rpartition("\n")
    assert last == "asyncio.run(main())"
    names: dict[str, object] = {"url": server.url, "key": KEY}
    exec(compile(code, "docs/python-client.md", "exec"), names)
    main = names["main"]
    assert callable(main)
    running = asyncio.create_task(main())
    peer = await server.peer()
    request = await peer.begun(7)
    assert (request["topics"], request["filter"], request["on_slow"]) == (
        ["opportunity"],
        ["probability > 0.5"],
        "conflate",
    )
    event = Opportunity(id="o1", expected_profit_lamports=5)
    await peer.frame([Run("mev.opportunity.v1", 0, [7], [event.SerializeToString()])])
    printed = await until_async(lambda: capsys.readouterr().out)
    assert printed == "o1 5\n"
    running.cancel()
    await peer.gone.wait()


def test_every_error_of_a_stream_is_explained() -> None:
    names = {
        name
        for name, cls in vars(errors).items()
        if isinstance(cls, type) and issubclass(cls, MevError)
    }
    ours = {
        name for name in names if getattr(errors, name).__module__ == errors.__name__
    } - NOT_OF_A_STREAM
    assert {name for name in ours if f"`{name}`" not in PAGE} == set()


def test_every_option_of_tail_is_explained() -> None:
    app = Typer(add_completion=False)
    app.command()(make_tail(lambda: pytest.fail("not run")))
    options = {
        option
        for parameter in get_command(app).params
        for option in parameter.opts
        if option.startswith("--")
    } - {"--help"}
    assert options
    assert {
        option for option in options if f"`{option}" not in PAGE and f"`-n`, `{option}" not in PAGE
    } == set()
