"""``mev tail``, as its user sees it."""

import asyncio
import json
import re
import shlex
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from io import BytesIO, StringIO

import pytest
from rich.console import Console
from typer import Typer
from typer.testing import CliRunner

from mev.cli.event_line import json_line, line
from mev.cli.tail import EventSource, TailRun, Wish, make_tail, parse_start
from mev.client import Cursor, Record, Resume, Slot
from mev.client.cursor import Start
from mev.core.errors import InvalidInputError, UnavailableError
from mev.wire.frames import Run
from mev.wire.pb.events_pb2 import AgentMetrics, Arbitrage, Bundle, Opportunity, RouteStep, Tick
from mev.wire.registry import EVENT_TYPES
from mev.wire.resume import decode, fingerprint
from tests.services.waits import until_async
from tests.unit.client.server import KEY, LOG, Peer, Server, tick

NOON_NS = 1_795_348_800_000_000_000  # 2026-11-22T12:00:00Z
ADDRESS = "7xKXtg2CW87d97TXJSDpbD5jBkheTqA83TZRuJosgAsU"
NAMES: dict[object, str] = {event.message: name for name, event in EVENT_TYPES.items()}


def record(event: Tick | Opportunity | Bundle | Arbitrage | AgentMetrics) -> Record:
    return Record(NAMES[type(event)], 0, 7, event.SerializeToString())


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (
            Tick(
                market_id="orca:SOL-USDC",
                timestamp_ns=NOON_NS + 5_000_000,
                bid_price=160.25,
                simulated=True,
            ),
            "12:00:00.005 tick orca:SOL-USDC sim bid_price 160.25",
        ),
        (
            Opportunity(
                id="o1",
                slot=9,
                detected_at_ns=NOON_NS - 86_400 * 10**9,
                kind="arbitrage",
                route=[RouteStep(dex="Orca"), RouteStep(dex="Phoenix")],
                expected_profit_lamports=-1_500_000_000,
                probability=0.25,
                features=[1, 2, 3],
            ),
            (
                "11-21 12:00:00 opportunity o1 arbitrage Orca > Phoenix expected_profit -1.5 SOL"
                " probability 0.25 features (3) slot 9"
            ),
        ),
        (
            Bundle(bundle_id="b1", slot=9, landed=True, profit_lamports=5, latency_ns=1_234_567),
            "9 bundle b1 landed profit 0.000000005 SOL latency 1.23 ms",
        ),
        (
            Arbitrage(
                signature=ADDRESS,
                venues=["a", "b", "c", "d"],
                profit_mint=ADDRESS,
                profit_amount=1_234_500,
                profit_decimals=3,
                fee_lamports=10**12,
            ),
            "0 arbitrage 7xKX…gAsU a > … > d (4) profit 1,234.5 7xKX…gAsU fee 1,000 SOL",
        ),
        (
            AgentMetrics(agent_id="a", gauges={"x": 1, "y": 2, "z": 3, "zz": 4}),
            "agent_metrics a gauges x=1 y=2 z=3 and 1 more",
        ),
        (
            Bundle(bundle_id="b\x1b]0;title\x07", error="two\nlines"),
            r"0 bundle b\x1b]0;title\x07 error two\nlines",
        ),
    ],
)
def test_an_event_is_one_line(event: Tick, words: str) -> None:
    assert " ".join(line(record(event), NOON_NS).plain.split()) == words


def test_what_is_no_event_is_shown_too() -> None:
    for topic in ("tick", "newer"):
        text = line(Record(topic, 3, 8, b"\xff\xff"), NOON_NS).plain
        assert (
            " ".join(text.split())
            == f"{topic} 2 bytes that are no such event, partition 3, offset 8"
        )
        assert json.loads(json_line(Record(topic, 3, 8, b"\xff\xff"))) == {
            "type": topic,
            "undecodable": "//8=",
        }


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("live", "live"),
        ("earliest", "earliest"),
        ("slot:17", Slot(17)),
        ("resume:YWJj", Resume("YWJj")),
        ("2026-11-22T10:00:00Z", datetime(2026, 11, 22, 10, tzinfo=UTC)),
        ("2026-11-22T10:00:00", datetime(2026, 11, 22, 10, tzinfo=UTC)),
        ('cursor:{"tick":{"0":5}}', Cursor({"tick": {0: 5}})),
    ],
)
def test_where_to_start(text: str, start: Start) -> None:
    assert parse_start(text) == start


@pytest.mark.parametrize(
    "text", ["", "yesterday", "slot:x", "slot:", "resume:", "cursor:", "cursor:{}x"]
)
def test_no_start(text: str) -> None:
    with pytest.raises(InvalidInputError, match=r"expected live|not a cursor"):
        parse_start(text)


class Running:
    """One run of the command against a server."""

    def __init__(self, server: Server, wish: Wish) -> None:
        self.out, self.notices = BytesIO(), StringIO()
        console = Console(file=self.notices, width=1000, highlight=False)
        self.tail = TailRun(wish, console, self.out)
        self.log = LOG
        self.task = asyncio.create_task(
            self.tail.run(EventSource(url=server.url, credential=lambda: KEY))
        )

    def resume(self) -> dict[tuple[str, int], int]:
        """Return where the command that is printed at the end starts."""
        self.tail.report()
        words = shlex.split(self.notices.getvalue().splitlines()[-1])
        start = parse_start(words[words.index("--from") + 1])
        assert isinstance(start, Resume)
        log, positions = decode(start.token, EVENT_TYPES)
        assert log == fingerprint(self.log)
        return positions


async def test_lines_of_json_up_to_a_count_and_where_to_go_on(server: Server) -> None:
    run = Running(
        server,
        Wish(
            topics=["tick"],
            filter=["bid_price > 1"],
            start="earliest",
            on_slow="lossless",
            count=4,
            json=True,
        ),
    )
    peer = await server.peer()
    request = await peer.begun(0, positions={})
    assert (request["topics"], request["filter"], request["from"], request["on_slow"]) == (
        ["tick"],
        ["bid_price > 1"],
        "earliest",
        "lossless",
    )
    runs = [
        Run("mev.tick.v1", partition, [5, 9], [tick(n).SerializeToString() for n in (5, 9)])
        for partition in (0, 1)
    ]
    await peer.frame(runs[:1])
    await peer.frame([*runs[1:], Run("mev.tick.v1", 0, [10], [tick(10).SerializeToString()])])
    await run.task
    lines = [json.loads(text) for text in run.out.getvalue().splitlines()]
    assert [(item["type"], item["bid_price"]) for item in lines] == [
        ("tick", 2.5),
        ("tick", 4.5),
    ] * 2
    assert run.resume() == {("mev.tick.v1", 0): 10, ("mev.tick.v1", 1): 10}
    assert "4 events; to go on" in run.notices.getvalue()
    assert (
        "mev tail tick --filter 'bid_price > 1' --on-slow lossless --json --count 4 --from resume:"
        in run.notices.getvalue()
    )


async def test_command_to_go_on_has_the_token_of_the_server_and_all_options(server: Server) -> None:
    run = Running(
        server,
        Wish(
            topics=["ti*"],
            filter=[],
            start="live",
            on_slow="drop_oldest",
            max_rate=7,
            count=3,
            json=True,
        ),
    )
    peer = await server.peer()
    await peer.begun(0, topics=["tick"])
    await peer.events(0, 3, resume="token-3")
    await run.task
    run.tail.report()
    assert (
        run.notices.getvalue().splitlines()[-1]
        == "mev tail 'ti*' --max-rate 7 --json --count 3 --from resume:token-3"
    )


@pytest.mark.parametrize("options", [["--json"], []])
async def test_closed_pipe_ends_the_command_at_once_and_quietly(
    server: Server, options: list[str]
) -> None:
    code = (
        "import typer; from mev.cli.tail import EventSource, make_tail;"
        f"typer.run(make_tail(lambda: EventSource(url={server.url!r}, credential=lambda: {KEY!r})))"
    )
    shell = (
        'set -o pipefail; "$0" -c "$1" tick "${@:2}" | head -n 1; echo "exit code ${PIPESTATUS[0]}"'
    )
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        "bash", "-c", shell, sys.executable, code, *options, stdout=pipe, stderr=pipe
    )
    peer = await server.peer()
    await peer.begun(0)
    await peer.events(0, 1)  # and nothing more, so that nothing is written into the closed pipe
    out, errors = await process.communicate()
    first, last = out.decode().splitlines()
    assert "market-0" in first
    assert (last, errors) == ("exit code 0", b"")


async def test_losses_are_told_and_an_interrupt_keeps_the_place(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Running(
        server,
        Wish(
            topics=["tick"], filter=[], start=Cursor({"tick": {0: 1}}, LOG), on_slow="drop_oldest"
        ),
    )
    peer = await server.peer()
    await peer.begun(20, start="gap", gaps={"tick": {"0": {"from": 1, "to": 20}}})
    await peer.events(30, 1, dropped=10, queued=7)
    peer.drop()
    peer = await server.peer()
    await peer.begun(0, start="reset", log="log-2")
    await peer.events(0, 1)
    await _heard(run, peer, lambda text: "market-0" in text, capsys)
    run.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run.task
    run.log = "log-2"
    assert run.resume() == {("mev.tick.v1", 0): 1}
    told = run.notices.getvalue()
    assert "mev: 19 events of tick are past retention: partition 0, offset 1 to 19" in told
    assert "mev: 10 events left out here, by --on-slow drop_oldest; 7 wait" in told
    assert "mev: the log is another one" in told
    assert "2 events, 29 lost" in told


async def test_snapshot_is_printed_like_other_events(server: Server) -> None:
    run = Running(
        server,
        Wish(
            topics=["tick"],
            filter=[],
            start="live",
            on_slow="drop_oldest",
            count=3,
            json=True,
            snapshot=True,
        ),
    )
    peer = await server.peer()
    assert (await peer.begun(40))["snapshot"] is True
    await peer.events(7, 2, snapshot_left=0)
    await peer.events(40, 1)
    await run.task
    assert [json.loads(text)["bid_price"] for text in run.out.getvalue().splitlines()] == [
        3.5,
        4.0,
        20.0,
    ]
    assert run.resume() == {("mev.tick.v1", 0): 41}
    assert "--snapshot" not in run.notices.getvalue()  # it goes on from its place


async def _heard(
    run: Running, peer: Peer, condition: Callable[[str], bool], capsys: pytest.CaptureFixture[str]
) -> None:
    del peer
    text = ""

    def read() -> str:
        nonlocal text
        text += capsys.readouterr().out
        return text

    await until_async(read, condition)
    assert re.search(r"tick +market-30", text)
    assert not run.task.done()


def test_options_that_mean_nothing_are_refused() -> None:
    def nowhere() -> EventSource:
        raise UnavailableError("nothing runs here")

    app = Typer()
    app.command()(make_tail(nowhere))
    refused = CliRunner().invoke(app, ["--on-slow", "wait"])
    assert isinstance(refused.exception, InvalidInputError)
    assert "expected drop_oldest, conflate, lossless" in str(refused.exception)
    both = CliRunner().invoke(app, ["--snapshot", "--from", "earliest"])
    assert "--snapshot is of now" in str(both.exception)
    assert isinstance(CliRunner().invoke(app, ["--from", "never"]).exception, InvalidInputError)
    assert isinstance(CliRunner().invoke(app, ["tick"]).exception, UnavailableError)


@pytest.mark.parametrize("terminal", [True, False])
async def test_a_terminal_cuts_lines_and_a_pipe_does_not(
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    *,
    terminal: bool,
) -> None:
    for name, value in {
        "COLUMNS": "60",
        "TERM": "xterm",
        **({"FORCE_COLOR": "1"} if terminal else {}),
    }.items():
        monkeypatch.setenv(name, value)
    run = Running(
        server, Wish(topics=["opportunity"], filter=[], start="live", on_slow="lossless", count=1)
    )
    peer = await server.peer()
    await peer.begun(0)
    event = Opportunity(
        id="o1",
        kind="sandwich",
        expected_profit_lamports=5,
        probability=0.5,
        agent_id="the-very-last-of-it",
    )
    await peer.frame([Run("mev.opportunity.v1", 0, [0], [event.SerializeToString()])])
    await run.task
    (shown,) = re.sub("\x1b\\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    assert shown.endswith("…" if terminal else "agent_id the-very-last-of-it")
    assert (len(shown) <= 60) is terminal
