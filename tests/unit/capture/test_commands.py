"""The command: what it prints, publishes and returns."""

import gzip
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
import typer
from typer.testing import CliRunner, Result

from mev.bus.kafka import PublishError
from mev.cli.capture import make_command
from mev.wire import registry
from mev.wire.pb import events_pb2
from tests.unit.capture import chain
from tests.unit.capture.node import Node, Reply


class Broker:
    """Keeps what is published; fails the first times when told to."""

    def __init__(self, failures: int = 0) -> None:
        self.records: list[tuple[str, registry.KafkaRecord]] = []
        self.connections = 0
        self.failures = failures

    @contextmanager
    def connect(self) -> Iterator["Broker"]:
        self.connections += 1
        yield self

    def publish_and_wait(self, topic: str, records: list[registry.KafkaRecord], /) -> None:
        if self.failures:
            self.failures -= 1
            raise PublishError("gone")
        self.records += [(topic, record) for record in records]


@pytest.fixture
def broker() -> Broker:
    return Broker()


@pytest.fixture
def app(broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> typer.Typer:
    monkeypatch.setattr("time.sleep", lambda _s: None)
    app = typer.Typer()
    app.command("capture")(make_command(broker.connect, lambda: tmp_path, lambda: None))
    return app


def run(app: typer.Typer, *args: object, stdin: bytes = b"") -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args], input=stdin)


@pytest.fixture
def block(tmp_path: Path) -> Path:
    tips = chain.Tx([chain.wallet("tipper")])
    tips.pay("96gYZGLnJYVFmbjzopPSU6QiEV5fGqZNyN9nmNhvrZU5", 10_000)
    failed = chain.arbitrage("unlucky")
    failed.err = "no"
    path = tmp_path / "block.json.gz"
    path.write_bytes(gzip.compress(orjson.dumps(chain.block(chain.arbitrage(), tips, failed))))
    return path


def test_a_file_is_published(app: typer.Typer, broker: Broker, block: Path) -> None:
    result = run(app, "--file", block)
    assert (result.exit_code, result.stdout) == (0, "")
    ((topic, record),) = broker.records
    event = events_pb2.Arbitrage.FromString(record["value"])
    assert (topic, record["key"]) == ("mev.arbitrage.v1", event.signature.encode())
    assert result.stderr == (
        "3 transactions read, 0 votes skipped, 1 failed skipped, 1 arbitrage, 0 sandwiches,"
        " 0 liquidations, 1 Jito tip of 0.00001 SOL, 1 event published\n"
    )


def test_a_dry_run_prints_and_needs_no_broker(
    app: typer.Typer, broker: Broker, block: Path
) -> None:
    result = run(app, "--file", block, "--dry-run")
    (line,) = result.stdout.splitlines()
    event = orjson.loads(line)
    assert list(event) == [
        "type",
        *(field.name for field in events_pb2.Arbitrage.DESCRIPTOR.fields),
    ]
    assert (event["type"], event["profit_amount"], event["pools"]) == (
        "arbitrage",
        500,
        [chain.pda("pool-a"), chain.pda("pool-b")],
    )
    assert (result.exit_code, broker.connections) == (0, 0)


def test_several_files_and_standard_input(
    app: typer.Typer, broker: Broker, block: Path, tmp_path: Path
) -> None:
    lines = tmp_path / "lines.jsonl"
    lines.write_bytes(orjson.dumps(chain.arbitrage("second").single()))
    result = run(
        app, "--file", block, lines, "-", stdin=orjson.dumps(chain.arbitrage("third").single())
    )
    assert (result.exit_code, len(broker.records)) == (0, 3)


@pytest.mark.parametrize(
    "content",
    [
        b"plain text\nand more\n",
        b"\xff\xfe\x00",
        b"{",
        b"[1, 2",
        b"7",
        b"",
        gzip.compress(b"[1]" * 99, mtime=0)[:-12],
    ],
)
def test_a_bad_file_is_one_line_and_exit_code_2(
    app: typer.Typer, broker: Broker, tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "bad"
    path.write_bytes(content)
    result = run(app, "--file", path)
    assert (result.exit_code, result.stdout, broker.records) == (2, "", [])
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: {path}")


def test_good_lines_around_a_bad_one_are_published(
    app: typer.Typer, broker: Broker, tmp_path: Path
) -> None:
    wrong: dict[str, Any] = chain.arbitrage("wrong").single()
    wrong["meta"]["preBalances"][2] = "7"
    path = tmp_path / "lines.jsonl"
    records = [chain.arbitrage("a").single(), wrong, chain.arbitrage("b").single()]
    path.write_bytes(b"\n".join([*map(orjson.dumps, records), b"{oops"]))
    result = run(app, "--file", path)
    assert (result.exit_code, len(broker.records)) == (2, 2)
    errors = result.stderr.splitlines()
    assert (
        errors[0]
        == f"error: {path}: line 2: meta.preBalances[2]: expected a whole number, found a text"
    )
    assert errors[1].startswith(f"error: {path}: line 4, column 2: not JSON")


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["--file", "x", "--rpc", "http://h"],
        ["--file", "x", "--from-slot", "5"],
        ["--rpc", "nonsense"],
        ["--rpc", "http://h", "--commitment", "x"],
    ],
)
def test_wrong_options(app: typer.Typer, args: list[str]) -> None:
    result = run(app, *args)
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1


def test_a_broker_that_moved_is_found_again(app: typer.Typer, broker: Broker, block: Path) -> None:
    broker.failures = 2
    assert run(app, "--file", block).exit_code == 0
    assert (len(broker.records), broker.connections) == (1, 3)


def test_a_broker_that_stays_away(app: typer.Typer, broker: Broker, block: Path) -> None:
    broker.failures = 99
    result = run(app, "--file", block)
    assert (result.exit_code, "error: gone" in result.stderr) == (1, True)


def test_following_a_node(app: typer.Typer, broker: Broker, tmp_path: Path, node: Node) -> None:
    answers: dict[int, Reply] = {
        101: {"result": chain.block(chain.arbitrage("a"), slot=101)},
        102: {"error": {"code": -32007, "message": "skipped"}},
        103: {"result": {**chain.block(chain.arbitrage("b"), slot=103), "parentSlot": 101}},
    }
    node.default["getBlock"] = lambda params: answers[params[0]]
    assert (
        run(
            app,
            "--rpc",
            node.url,
            "--from-slot",
            101,
            "--to-slot",
            102,
            "--requests-per-second",
            1e6,
        ).exit_code
        == 0
    )
    (position,) = (tmp_path / "capture").iterdir()
    # Slot 102 is certain to be skipped only once a later block has been captured.
    assert orjson.loads(position.read_bytes()) == {"next_slot": 102}
    assert (
        run(app, "--rpc", node.url, "--to-slot", 103, "--requests-per-second", 1e6).exit_code == 0
    )
    slots = [events_pb2.Arbitrage.FromString(record["value"]).slot for _, record in broker.records]
    assert slots == [101, 103]


def test_following_ends_quietly_when_asked_to_terminate(
    app: typer.Typer, broker: Broker, tmp_path: Path, node: Node
) -> None:
    def block(params: list[Any]) -> Reply:
        if params[0] == 103:
            os.kill(os.getpid(), signal.SIGTERM)
        return {"result": chain.block(chain.arbitrage(f"bot {params[0]}"), slot=params[0])}

    node.default["getBlock"] = block
    before = signal.getsignal(signal.SIGTERM)
    assert (
        run(app, "--rpc", node.url, "--from-slot", 101, "--requests-per-second", 1e6).exit_code == 0
    )
    assert signal.getsignal(signal.SIGTERM) == before
    (position,) = (tmp_path / "capture").iterdir()
    assert orjson.loads(position.read_bytes()) == {"next_slot": 101 + len(broker.records)}
    assert len(broker.records) >= 2


def test_a_dry_run_leaves_the_position_alone(app: typer.Typer, tmp_path: Path, node: Node) -> None:
    assert run(app, "--rpc", node.url, "--to-slot", 105, "--dry-run").exit_code == 0
    assert not (tmp_path / "capture").exists()


def test_the_summary_tells_what_was_published_and_what_was_known(
    app: typer.Typer, tmp_path: Path
) -> None:
    lines = tmp_path / "lines.jsonl"
    single = orjson.dumps(chain.arbitrage("a").single())
    lines.write_bytes(b"\n".join([single, single, b"{oops"]))
    assert (
        run(app, "--file", lines)
        .stderr.splitlines()[-1]
        .endswith("1 bad input, 1 event published, 1 known already in this run")
    )
    assert (
        run(app, "--file", lines, "--dry-run")
        .stderr.splitlines()[-1]
        .endswith("1 event printed, 1 known already in this run")
    )


def test_what_was_not_published_is_not_counted(
    app: typer.Typer, broker: Broker, block: Path
) -> None:
    broker.failures = 99
    assert "0 events published" in run(app, "--file", block).stderr


@pytest.mark.parametrize("packed", ["block.json.gz", "block.json.zst"])
def test_a_name_that_promises_compression_is_what_is_wrong(
    app: typer.Typer, tmp_path: Path, packed: str
) -> None:
    path = tmp_path / packed
    path.write_bytes(bytes(range(128, 256)) * 8)
    result = run(app, "--file", path)
    suffix = path.suffix
    assert (
        result.stderr
        == f"error: {path}: neither gzip nor zstandard data, which {suffix} in its name promises,"
        " nor JSON\n"
    )
    path.write_bytes(orjson.dumps(chain.arbitrage("plain after all").single()))
    assert run(app, "--file", path).exit_code == 0


def test_a_node_of_the_environment_is_followed_unless_files_are_given(
    broker: Broker, tmp_path: Path, node: Node, block: Path
) -> None:
    app = typer.Typer()
    app.command("capture")(make_command(broker.connect, lambda: tmp_path, lambda: node.url))
    assert run(app, "--to-slot", 105, "--requests-per-second", 1e6).exit_code == 0
    asked = len(node.asked)
    assert asked > 0
    assert run(app, "--file", block).exit_code == 0
    assert len(node.asked) == asked


def test_an_error_names_the_port_and_no_key(app: typer.Typer, node: Node) -> None:
    node.default["getSlot"] = lambda _params: (403, {}, b"no")
    url = node.url.replace("http://", "http://user:secret@") + "?api-key=secret"
    result = run(app, "--rpc", url)
    assert f"http://127.0.0.1:{node.server.server_port}: HTTP 403" in result.stderr
    assert "secret" not in run(app, "--rpc", "ftp://h/secret").stderr + result.stderr


def test_what_a_node_says_moves_no_cursor(app: typer.Typer, node: Node) -> None:
    node.default["getSlot"] = lambda _params: {"error": {"code": -1, "message": "\x1b[2Jgone"}}
    stderr = run(app, "--rpc", node.url).stderr
    assert r"\x1b[2Jgone" in stderr
    assert "\x1b" not in stderr


def test_a_node_that_refuses(app: typer.Typer, node: Node) -> None:
    node.queued["getSlot"] = [(401, {}, b"no")]
    result = run(app, "--rpc", node.url)
    assert (result.exit_code, "HTTP 401" in result.stderr) == (1, True)


def gap_lines(stderr: str) -> list[str]:
    return [line for line in stderr.splitlines() if "missing" in line and "read," not in line]


def test_slot_that_the_node_keeps_back_is_told_and_filled_later(
    app: typer.Typer, broker: Broker, tmp_path: Path, node: Node
) -> None:
    held: set[int] = {102, 103}

    def answer(params: list[Any]) -> Reply:
        slot = params[0]
        if slot in held:
            return {
                "error": {"code": -32015, "message": "Transaction version (2) is not supported"}
            }
        return {"result": chain.block(chain.arbitrage(f"bot {slot}"), slot=slot)}

    node.default["getBlock"] = answer
    result = run(
        app, "--rpc", node.url, "--from-slot", 101, "--to-slot", 105, "--requests-per-second", 1e6
    )
    reason = "missing: it has a transaction of a version that the node does not give out (-32015)"
    assert gap_lines(result.stderr) == [f"slot 102 is {reason}; kept for mev capture --gaps"]
    assert result.stderr.splitlines()[-1].split(", ")[-2:] == [
        "2 slots missing",
        "3 events published",
    ]
    assert (result.exit_code, len(broker.records)) == (3, 3)
    again = run(app, "--rpc", node.url, "--to-slot", 105, "--requests-per-second", 1e6)
    assert gap_lines(again.stderr) == [
        "2 slots missing from earlier runs: mev capture --gaps shows and reads them"
    ]
    assert again.exit_code == 0

    shown = run(app, "--rpc", node.url, "--gaps", "--dry-run")
    assert gap_lines(shown.stderr) == [f"slots 102 to 103 are {reason}", "2 slots missing"]
    assert shown.exit_code == 3
    held.remove(102)
    filled = run(app, "--rpc", node.url, "--gaps", "--requests-per-second", 1e6)
    assert gap_lines(filled.stderr)[-1] == "1 slot missing"
    assert (filled.exit_code, len(broker.records)) == (3, 4)
    held.clear()
    filled = run(app, "--rpc", node.url, "--gaps", "--requests-per-second", 1e6)
    assert filled.stderr.splitlines()[-1] == "no slot is missing"
    assert (filled.exit_code, len(broker.records)) == (0, 5)
    (position,) = (each for each in (tmp_path / "capture").iterdir() if "gaps" not in each.name)
    assert orjson.loads(position.read_bytes()) == {"next_slot": 106}


def test_gaps_are_filled_from_another_node(app: typer.Typer, broker: Broker, node: Node) -> None:
    asked: list[str] = []

    def answer(_params: list[Any]) -> Reply:
        asked.append(node.path)
        if node.path == "/archive":
            return {"result": chain.block(chain.arbitrage(), slot=101)}
        return {"error": {"code": -32001, "message": "cleaned up"}}

    node.default["getBlock"] = answer
    archive = node.url.replace("/key", "/archive")
    assert run(app, "--rpc", node.url, "--from-slot", 101, "--to-slot", 101).exit_code == 3
    assert run(app, "--rpc", node.url, "--gaps", "--fill-from", archive).exit_code == 0
    assert (asked, len(broker.records)) == (["/key", "/archive"], 1)


@pytest.mark.parametrize(
    "args",
    [
        ["--file", "x", "--gaps"],
        ["--gaps"],
        ["--rpc", "http://h", "--gaps", "--to-slot", "5"],
        ["--rpc", "http://h", "--fill-from", "http://i"],
    ],
)
def test_wrong_options_of_gaps(app: typer.Typer, args: list[str]) -> None:
    result = run(app, *args)
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1


def test_position_never_passes_a_slot_that_was_neither_read_nor_kept(
    app: typer.Typer, tmp_path: Path, node: Node
) -> None:
    """After a kill, each slot before the position was read, is empty, or is a listed gap."""
    seen: list[tuple[int, set[int]]] = []

    def answer(params: list[Any]) -> Reply:
        folder = tmp_path / "capture"
        files = (
            {each.name: orjson.loads(each.read_bytes()) for each in folder.iterdir()}
            if folder.exists()
            else {}
        )
        gaps: list[Any] = next(
            (value["gaps"] for name, value in files.items() if "gaps" in name), []
        )
        position = next(
            (value["next_slot"] for name, value in files.items() if "gaps" not in name), 101
        )
        seen.append(
            (position, {slot for gap in gaps for slot in range(gap["first"], gap["last"] + 1)})
        )
        if params[0] == 103:
            return {"error": {"code": -32011, "message": "no history"}}
        return {"result": chain.block(slot=params[0])}

    node.default["getBlock"] = answer
    run(app, "--rpc", node.url, "--from-slot", 101, "--to-slot", 105, "--requests-per-second", 1e6)
    assert seen == [(101, set()), (102, set()), (103, set()), (104, {103}), (105, {103})]


def test_transactions_of_an_unknown_version_are_counted_and_told_once(
    app: typer.Typer, broker: Broker, tmp_path: Path
) -> None:
    block = chain.block(*(chain.arbitrage(name) for name in "abcd"))
    block["transactions"][1] |= {"version": 2, "transaction": {"shape": "unheard of"}}
    block["transactions"][2] |= {"version": 2}
    path = tmp_path / "block.json"
    path.write_bytes(orjson.dumps(block))
    result = run(app, "--file", path)
    told, summary = result.stderr.splitlines()
    assert told == "transactions of version 2 cannot be read yet: they are counted and passed over"
    assert "2 transactions of unknown version passed over, 2 events published" in summary
    assert (result.exit_code, len(broker.records)) == (0, 2)


def test_skipped_slots_among_batch_answers_are_normal(
    app: typer.Typer, broker: Broker, tmp_path: Path
) -> None:
    codes = (-32007, -32009, "-32007", -32009.0)
    skipped = [
        {"jsonrpc": "2.0", "id": number, "error": {"code": code}}
        for number, code in enumerate(codes)
    ]
    good = {"jsonrpc": "2.0", "id": 1, "error": None, "result": chain.block(chain.arbitrage())}
    path = tmp_path / "batch.json"
    path.write_bytes(orjson.dumps([skipped[0], good, *skipped[1:], {"id": 9, "result": None}]))
    result = run(app, "--file", path)
    assert "4 slots without a block, 1 answer without a result, 1 event published" in result.stderr
    assert (result.exit_code, len(broker.records), len(result.stderr.splitlines())) == (0, 1, 1)
    others: list[Any] = [-32004, "-32004", None, [], {}]
    for code in others:
        path.write_bytes(
            orjson.dumps([good, {"error": {"code": code, "message": "not available"}}])
        )
        assert run(app, "--file", path).exit_code == 2


KILLED = """
import sys
from contextlib import nullcontext
from pathlib import Path
import typer
from mev.cli.capture import make_command

class Broker:
    def publish_and_wait(self, topic, records): ...

folder = Path(sys.argv.pop(1))
app = typer.Typer()
app.command("capture")(make_command(lambda: nullcontext(Broker()), lambda: folder, lambda: None))
app()
"""


def test_gaps_and_position_survive_a_killed_process(
    app: typer.Typer, broker: Broker, tmp_path: Path, node: Node
) -> None:
    process: list[subprocess.Popen[bytes]] = []

    def answer(params: list[Any]) -> Reply:
        slot = params[0]
        if slot == 103 and not broker.records:
            return {"error": {"code": -32001, "message": "cleaned up"}}
        if slot == 105 and process and process[0].poll() is None:
            process[0].kill()
            process[0].wait()
        return {"result": chain.block(chain.arbitrage(f"bot {slot}"), slot=slot)}

    node.default |= {"getBlock": answer, "getSlot": lambda _params: {"result": 110}}
    options = ["--rpc", node.url, "--from-slot", "101", "--requests-per-second", "50"]
    process.append(subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path), *options]))
    assert process[0].wait(60) == -signal.SIGKILL
    run(app, "--rpc", node.url, "--to-slot", 106, "--requests-per-second", 1e6)
    filled = run(app, "--rpc", node.url, "--gaps", "--requests-per-second", 1e6)
    assert (filled.exit_code, filled.stderr.splitlines()[0].startswith("slot 103 is missing")) == (
        0,
        True,
    )
    slots = [events_pb2.Arbitrage.FromString(record["value"]).slot for _, record in broker.records]
    assert slots == [105, 106, 103]
