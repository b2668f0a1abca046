"""Command ``mev agent``.

The composition root creates it with :func:`make_command`, which receives the locations of the
control plane and of the folders. Exit codes: 0 stopped, 1 a service failed, 2 invalid input.
"""

import asyncio
import logging
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from logging.handlers import QueueHandler, QueueListener
from pathlib import Path
from typing import Annotated

import typer
from rich.cells import cell_len, set_cell_size
from rich.console import Console

from mev.agent.agent import Agent, read_key_set
from mev.agent.enrolment import Site, fetch_from
from mev.agent.folder import AgentFolder
from mev.agent.level import LeaseLimits, ordered_level, standing
from mev.agent.model_source import ModelFolder
from mev.agent.policy import PolicyType
from mev.agent.run import AgentRun
from mev.agent.state import Accepted, AgentState
from mev.agent.strategies.arbitrage import Arbitrage
from mev.agent.strategy import Strategy
from mev.cli.tables import print_table
from mev.core import log
from mev.core.clock import now_ns
from mev.core.errors import InvalidInputError, NotFoundError
from mev.core.tasks import in_thread
from mev.core.text import shown
from mev.wire.orders import version_key
from mev.wire.pb.control_pb2 import PRODUCTION, SHADOW, ModelRole

LocateApi = Callable[[str | None], Site]
STRATEGIES: Mapping[str, Callable[[], Strategy]] = {"arbitrage": Arbitrage}
_ROLES = {PRODUCTION: "model", SHADOW: "shadow"}
_REFRESH_S = 0.5
_CLEAR = "\r\x1b[K"  # goes to the start of the line and empties it
_WAITING_RECORDS = 10_000


class UnknownModuleError(InvalidInputError):
    """The module does not exist."""

    code = "unknown_module"


class UnknownLocalAgentError(NotFoundError):
    """No agent with this id has run on this machine."""

    code = "unknown_agent"


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Folders and log settings of this machine.

    `agents` holds the state of the agents, `models` the models; `log_repeats_per_minute` limits the
    log records of one place in the code.
    """

    agents: Path
    models: Path
    log_level: str
    log_repeats_per_minute: int


def make_command(locate: LocateApi, places: Callable[[], Places]) -> typer.Typer:
    """Return the ``agent`` command.

    `locate` returns the control plane for the URL of its API, or the local one for None.
    """
    agent = typer.Typer(help="Run a bot under this control plane.", no_args_is_help=True)

    @agent.command()
    def run(
        module: Annotated[str, typer.Option(help=f"Strategy to run: {', '.join(STRATEGIES)}.")],
        agent_id: Annotated[
            str, typer.Option("--id", help="Id of the agent; its state is stored under it.")
        ],
        api: Annotated[
            str | None,
            typer.Option(
                help="URL of the API; default: the system on this machine.", show_default=False
            ),
        ] = None,
        trust: Annotated[
            Path | None,
            typer.Option(
                help="Key set to trust at first; default: the server's.", show_default=False
            ),
        ] = None,
        require_policy: Annotated[
            list[str] | None,
            typer.Option(help="Policy type required to open positions; may be repeated."),
        ] = None,
    ) -> None:
        """Run a bot until interrupted: it follows commands, trades on paper and reports."""
        here = places()
        log.configure(here.log_level, log.RepeatFilter(here.log_repeats_per_minute))
        if here.log_level != "DEBUG":
            # The agent logs an outage of the brokers once; the Kafka clients would log it many
            # times.
            logging.getLogger("mev.bus.kafka").setLevel(logging.CRITICAL)
        if module not in STRATEGIES:
            raise UnknownModuleError(f"no module {module!r}; there are {', '.join(STRATEGIES)}")
        strategy = STRATEGIES[module]()
        strategy.policy_types = requiring(strategy.policy_types, require_policy or ())
        bot = Agent(
            strategy,
            agent_id,
            locate=lambda: locate(api),
            folder=here.agents,
            trust=read_key_set(trust) if trust else None,
            models=ModelFolder(here.models, fetch_from(lambda: locate(api))),
        )
        line = StatusLine(Console(stderr=True, highlight=False, soft_wrap=True))
        with _logged_elsewhere(line):
            _run(_until_interrupted(bot, line))

    @agent.command()
    def show(agent_id: Annotated[str, typer.Option("--id", help="Id of the agent.")]) -> None:
        """Print the stored state of an agent: accepted commands and its answers."""
        state = AgentFolder(places().agents, agent_id).load()
        if state is None:
            raise UnknownLocalAgentError(f"no agent {agent_id!r} ran here")
        _show(state)

    return agent


class _Unhurried(QueueHandler):
    """Queue handler that drops records when the queue is full."""

    def enqueue(self, record: logging.LogRecord) -> None:
        with suppress(queue.Full):
            self.queue.put_nowait(record)


class StatusLine:
    """The last line of a terminal, which log records do not run into."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._lock = threading.Lock()
        self._text = ""

    @property
    def is_live(self) -> bool:
        """Return whether there is a terminal; without one, each state is a line of its own."""
        return self._console.is_terminal

    def show(self, text: str) -> None:
        """Show `text` in place of the line before it, cut to the width of the terminal."""
        with self._lock:
            self._text = shown(text)
            if self.is_live:
                self._write(self._cut())
            else:
                self._write(f"{self._text}\n")

    def end(self, text: str) -> None:
        """Show the last text, whole."""
        with self._lock:
            self._text = ""
            self._write(f"{shown(text)}\n")

    def log(self, handler: logging.Handler, record: logging.LogRecord) -> None:
        """Let `handler` write a record, above the line."""
        with self._lock:
            self._write("")
            handler.handle(record)
            self._write(self._cut())

    def _cut(self) -> str:
        width = min(cell_len(self._text), self._console.width - 1)
        return set_cell_size(self._text, width)

    def _write(self, text: str) -> None:
        sys.stderr.write(f"{_CLEAR}{text}" if self.is_live else text)
        sys.stderr.flush()


class _AboveLine(logging.Handler):
    """Handler that writes records with another one, above the status line."""

    def __init__(self, handler: logging.Handler, line: StatusLine) -> None:
        super().__init__()
        self._handler = handler
        self._line = line

    def emit(self, record: logging.LogRecord) -> None:
        self._line.log(self._handler, record)


@contextmanager
def _logged_elsewhere(line: StatusLine) -> Iterator[None]:
    """Write the log in a thread, so that a stopped terminal cannot block the agent."""
    root, records = logging.getLogger(), queue.Queue[logging.LogRecord](_WAITING_RECORDS)
    handlers = root.handlers[:]
    above = [_AboveLine(each, line) for each in handlers] if line.is_live else handlers
    listener = QueueListener(records, *above)
    root.handlers[:] = [_Unhurried(records)]
    listener.start()
    try:
        yield
    finally:
        root.handlers[:] = handlers
        with suppress(queue.Full):
            listener.stop()


def _run(work: Coroutine[None, None, None]) -> None:
    """Run `work` with uvloop if it is installed."""
    factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    with suppress(ImportError):
        factory = import_module("uvloop").new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(work)


def requiring(known: Sequence[PolicyType], names: Collection[str]) -> list[PolicyType]:
    """Return the policy types, with those in `names` marked as required.

    :raises BadParameter: when a name is unknown.
    """
    if unknown := sorted(set(names) - {each.name for each in known}):
        raise typer.BadParameter(
            f"no policy type {unknown[0]!r}; there are "
            f"{', '.join(each.name for each in known) or 'none'}"
        )
    return [replace(each, required=each.required or each.name in names) for each in known]


async def _until_interrupted(bot: Agent, line: StatusLine) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    showing = asyncio.create_task(_show_status(bot, line))
    try:
        await bot.run(stop)
    finally:
        showing.cancel()
        if bot.session is not None:
            line.end(status_text(bot.session))


async def _show_status(bot: Agent, line: StatusLine) -> None:
    """Update the status line of a terminal; without one, print a line on each state change."""
    last = ""
    while True:
        if (session := bot.session) is not None:
            models = [session.active_models.model_id(role) for role in _ROLES]
            key = (
                f"{session.processor.standing()} {session.control_plane.problem} {models} "
                f"{session.processor.blocked_by()}"
            )
            if line.is_live or key != last:
                await in_thread("status-line", partial(line.show, status_text(session)))
            last = key
        await asyncio.sleep(_REFRESH_S)


def status_text(session: AgentRun) -> str:
    """Return the state of a running agent as one line."""
    processor, counts = session.processor, session.trader.counts
    now, lease = processor.standing(), processor.state.lease.expires_at_ns
    left_s = max(0, lease - now_ns()) / 1e9 if lease else 0
    parts = [
        f"{session.identity.agent_id} ({session.identity.module}) {now.level.name}"
        + (f": {now.stepped_down}" if now.stepped_down else ""),
    ]
    # First, because a narrow terminal cuts the end.
    if blocked_by := processor.blocked_by():
        parts.append(f"nothing is sent: {', '.join(blocked_by)}")
    if session.control_plane.problem:
        parts.append(f"no control plane: {session.control_plane.problem}")
    parts += [
        f"lease {left_s:.0f} s" if lease else "no lease",
        f"{counts.opportunities} opportunities",
        f"{counts.decisions} decisions",
        f"{session.reporter.published} reports",
    ]
    parts += [f"{_ROLES[use.role]} {use.model_id[:12]}" for use in session.active_models.uses()]
    return " | ".join(parts)


def _show(state: AgentState) -> None:
    now = now_ns()
    held = standing(state.orders, state.lease, state.latched, LeaseLimits(), now)
    typer.echo(f"ordered   {ordered_level(state.orders, now).name}")
    typer.echo(
        f"allowed   {held.level.name}" + (f" ({held.stepped_down})" if held.stepped_down else "")
    )
    for role, name in _ROLES.items():
        if (text := _model(state, role)) is not None:
            typer.echo(f"{name:<9} {text}")
    expires = state.lease.expires_at_ns
    typer.echo(f"lease     {_time(expires) if expires else 'none since the last start'}")
    print_table(
        ("object", "version", "command", "accepted", "answer"),
        [_row(name, one) for name, one in sorted(state.accepted.items())],
    )


def _model(state: AgentState, role: ModelRole) -> str | None:
    """Return the model that the agent stores for the role, or None."""
    for one in state.accepted.values():
        if one.in_force and (swap := one.swap) is not None and swap.role == role:
            return (
                f"{swap.model_id[:12]} version {swap.version}, {swap.model_path}"
                if swap.model_id
                else "none"
            )
    return None


def _row(name: str, one: Accepted) -> tuple[str, ...]:
    answer = "not answered" if one.answer is None else one.answer.reason_code or "applied"
    epoch, counter = version_key(one.command.version)
    return name, f"{epoch}.{counter}", one.command.id, _time(one.received_at_ns), answer


def _time(time_ns: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(time_ns / 1e9))
