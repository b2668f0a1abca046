"""Commands to running agents: `mev up` with embedded services, and three agent processes."""

import os
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue

import httpx

from bench.children import Pipe, child, wait_for_end
from bench.harness import Clock, Row, RowFigures, RowInput, Sides
from mev.bus.batch import PartitionBatch
from mev.bus.embedded import KAFKA_FOLDER, embedded_brokers
from mev.bus.kafka import Brokers, KafkaCluster
from mev.bus.publisher import Publisher
from mev.bus.tail import Tail
from mev.cli import main
from mev.core.errors import UnavailableError
from mev.crypto.envelope import payload_type
from mev.store.folder import DataFolder
from mev.wire.pb.control_pb2 import ACK, Command, Report
from mev.wire.pb.envelope_pb2 import Envelope
from mev.wire.topics import CONTROL, REPORT

_AGENTS = ("a1", "a2", "a3")
_COMMANDS = 50
_TOPIC = "bench"
_START_S = 60.0
_ANSWER_S = 20.0
_TIMEOUT_S = 10.0
_RECORD_BYTES = 300
_PAUSE_S = 0.05
_SOON_S = 0.002
_KEPT_VARIABLES = ("PATH", "HOME", "TMPDIR", "LANG")


@contextmanager
def _open(setting: RowInput) -> Iterator[Sides]:
    folder = setting.scratch / "data"
    with ExitStack() as stack:
        stack.enter_context(child(_mev, folder, "up"))
        http = stack.enter_context(_client(folder))
        for agent_id in _AGENTS:
            stack.enter_context(
                child(_mev, folder, "agent", "run", "--module", "arbitrage", "--id", agent_id)
            )
        _wait(lambda: _online(http) == set(_AGENTS), folder)
        brokers = embedded_brokers(folder / KAFKA_FOLDER, DataFolder(folder).read_runtime().kafka)
        bare, ours = (
            stack.enter_context(_bare(brokers)),
            stack.enter_context(_issued(brokers, http)),
        )
        yield Sides(bare.side, ours.side, lambda figures: _percentiles(figures, bare, ours))


def _mev(pipe: Pipe, folder: Path, *arguments: str) -> None:
    """Run the command line with settings of its own, until the pipe ends."""
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    os.environ.clear()
    os.environ.update(kept, MEV_DATA_DIR=str(folder), API_PORT="0")
    with _log(folder).open("ab") as log:
        for output in (1, 2):
            os.dup2(log.fileno(), output)
    threading.Thread(target=_stop_with, args=(pipe,), daemon=True).start()
    main.app(arguments)


def _stop_with(pipe: Pipe) -> None:
    wait_for_end(pipe)
    os.kill(os.getpid(), signal.SIGTERM)


def _log(folder: Path) -> Path:
    return folder.with_name("mev.log")


@contextmanager
def _client(folder: Path) -> Iterator[httpx.Client]:
    """Give a client of the API with the master key, once it is ready."""
    data = DataFolder(folder)

    def ready() -> bool:
        try:
            return httpx.get(f"{data.read_runtime().api}/api/health/ready").is_success
        except (UnavailableError, httpx.HTTPError):
            return False

    _wait(ready, folder)
    headers = {"X-API-Key": data.secret("master-api-key")}
    with httpx.Client(
        base_url=data.read_runtime().api, headers=headers, timeout=_TIMEOUT_S
    ) as client:
        yield client


def _wait(done: Callable[[], bool], folder: Path) -> None:
    deadline = time.monotonic() + _START_S
    while not done():
        if time.monotonic() > deadline:
            raise RuntimeError(f"the system did not start:\n{_log(folder).read_text()}")
        time.sleep(_PAUSE_S)


def _online(http: httpx.Client) -> set[str]:
    agents = http.get("/api/control/agents").raise_for_status().json()["items"]
    return {agent["agent_id"] for agent in agents if agent["online"]} & set(_AGENTS)


@dataclass(slots=True)
class _Bare:
    """Baseline that publishes messages and reads each back before the next; stores milliseconds."""

    publisher: Publisher
    arrived: SimpleQueue[int]
    taken_ms: list[float] = field(default_factory=list)

    def side(self) -> float:
        before = len(self.taken_ms)
        for _ in range(_COMMANDS):
            started_ns = time.perf_counter_ns()
            self.publisher.publish_and_wait(
                _TOPIC, [{"key": b"bench", "value": bytes(_RECORD_BYTES)}]
            )
            self.taken_ms.append((self.arrived.get(timeout=_ANSWER_S) - started_ns) / 1e6)
        return 1000 / statistics.median(self.taken_ms[before:])


@contextmanager
def _bare(brokers: Brokers) -> Iterator[_Bare]:
    KafkaCluster(brokers, timeout_s=_TIMEOUT_S).ensure_topics([_TOPIC])
    arrived: SimpleQueue[int] = SimpleQueue()
    tail = Tail(
        brokers, [_TOPIC], lambda _: arrived.put(time.perf_counter_ns()), timeout_s=_TIMEOUT_S
    )
    publisher = Publisher(
        brokers, queue_messages=1000, queue_kbytes=65_536, linger_ms=0, timeout_s=_TIMEOUT_S
    )
    with closing(tail), closing(publisher):
        tail.start()
        yield _Bare(publisher, arrived)


@dataclass(slots=True)
class _Issued:
    """Issuer of commands, each after all agents answered the one before; stores milliseconds."""

    http: httpx.Client
    seen: SimpleQueue[Command | Report]
    applied_ms: list[float] = field(default_factory=list)
    reported_ms: list[float] = field(default_factory=list)

    def side(self) -> float:
        before = len(self.applied_ms)
        for number in range(_COMMANDS):
            self._issue(number)
        return 1000 / statistics.median(self.applied_ms[before:])

    def _issue(self, number: int) -> None:
        body = {"module": "arbitrage", "action": "set_min_profit", "params": {"lamports": number}}
        command_id = (
            self.http.post("/api/control/command", json=body).raise_for_status().json()["id"]
        )
        self.applied_ms += self._applied_ms(command_id)
        self.reported_ms += self._reported_ms(command_id)

    def _applied_ms(self, command_id: str) -> list[float]:
        issued_at_ns = 0
        applied_at_ns: list[int] = []
        while not issued_at_ns or len(applied_at_ns) < len(_AGENTS):
            message = self.seen.get(timeout=_ANSWER_S)
            if isinstance(message, Command) and message.id == command_id:
                issued_at_ns = message.issued_at_ns
            elif isinstance(message, Report) and message.command_id == command_id:
                if message.result != ACK:
                    raise RuntimeError(
                        f"{message.agent_id} refused: {message.reason_code}: {message.detail}"
                    )
                applied_at_ns.append(message.applied_at_ns)
        return [(each - issued_at_ns) / 1e6 for each in applied_at_ns]

    def _reported_ms(self, command_id: str) -> list[float]:
        deadline = time.monotonic() + _ANSWER_S
        while True:
            deliveries = (
                self.http.get(f"/api/control/commands/{command_id}")
                .raise_for_status()
                .json()["deliveries"]
            )
            if all(delivery["state"] == "SYNCED" for delivery in deliveries):
                return [delivery["latency_ms"] for delivery in deliveries]
            if time.monotonic() > deadline:
                raise RuntimeError(f"not every answer arrived: {deliveries}")
            time.sleep(_SOON_S)


@contextmanager
def _issued(brokers: Brokers, http: httpx.Client) -> Iterator[_Issued]:
    seen: SimpleQueue[Command | Report] = SimpleQueue()

    def deliver(batches: list[PartitionBatch]) -> None:
        for batch in batches:
            for value in batch.values:
                _note(Envelope.FromString(value), seen)

    with closing(Tail(brokers, (CONTROL, REPORT), deliver, timeout_s=_TIMEOUT_S)) as tail:
        tail.start()
        yield _Issued(http, seen)


def _note(envelope: Envelope, seen: "SimpleQueue[Command | Report]") -> None:
    # The system's own trust decides what counts; here only times are read.
    for kind in (Command, Report):
        if envelope.payload_type == payload_type(kind):
            seen.put(kind.FromString(envelope.payload))


def _percentiles(figures: RowFigures, bare: _Bare, ours: _Issued) -> list[str]:
    rounds = len(figures.ours)  # one more was run before
    named = (
        ("accepted to applied by an agent", ours.applied_ms),
        ("accepted to its report arrived", ours.reported_ms),
        ("published to taken from the broker", bare.taken_ms),
    )
    return [
        f"{what}: {_p50_p99(times_ms[len(times_ms) // (rounds + 1) :])}" for what, times_ms in named
    ]


def _p50_p99(times_ms: list[float]) -> str:
    cuts = statistics.quantiles(times_ms, n=100, method="inclusive")
    return f"p50 {cuts[49]:.1f} ms, p99 {cuts[98]:.1f} ms ({len(times_ms):,} times)"


ROW = Row(
    name="command_latency",
    unit="1/s",
    ours=(
        f"a command accepted over HTTP to applied by {len(_AGENTS)} agents, one after the other: 1"
        " / median time"
    ),
    baseline=(
        "a message published to taken from the same broker, one after the other: 1 / median time"
    ),
    clock=Clock.WALL,
    open=_open,
    expected_ms=20,
)
