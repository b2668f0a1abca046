"""The command ``mev agent``.

The composition root makes it with :func:`make_command`, which is told how to find the control plane and where folders are. Exit codes:
0 stopped, 1 a service failed, 2 something to mend.
"""

import asyncio
import logging
import queue
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from logging.handlers import QueueHandler, QueueListener
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from mev.agent.agent import Agent, read_key_set
from mev.agent.enrolment import Site
from mev.agent.fetch import fetch_from
from mev.agent.folder import AgentFolder
from mev.agent.level import Limits, ordered_level, standing
from mev.agent.model import ModelFolder
from mev.agent.session import Session
from mev.agent.state import Accepted, State
from mev.agent.strategies.arbitrage import Arbitrage
from mev.agent.strategy import Strategy
from mev.agent.thread import in_thread
from mev.core import log
from mev.core.clock import now_ns
from mev.core.errors import InvalidInputError, NotFoundError
from mev.core.terminal import print_table
from mev.wire.orders import order
from mev.wire.pb.control_pb2 import PRODUCTION, SHADOW, ModelRole

LocateApi = Callable[[str | None], Site]
STRATEGIES: Mapping[str, Callable[[], Strategy]] = {"arbitrage": Arbitrage}
_ROLES = {PRODUCTION: "model", SHADOW: "shadow"}
_REFRESH_S = 0.5
_WAITING_RECORDS = 10_000


class UnknownModuleError(InvalidInputError):
    """There is no such module."""

    code = "unknown_module"


class UnknownAgentError(NotFoundError):
    """No agent of this id ran here."""

    code = "unknown_agent"


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """What this machine's settings say: the folder that keeps agents, the folder of models, the least level that is logged."""

    agents: Path
    models: Path
    log_level: str


def make_command(locate: LocateApi, places: Callable[[], Places]) -> typer.Typer:
    """Return the ``agent`` command; `locate` finds the control plane, given the URL of its API or none."""
    agent = typer.Typer(help="Run a bot under this control plane.", no_args_is_help=True)

    @agent.command()
    def run(
        module: Annotated[str, typer.Option(help=f"Strategy to run: {', '.join(STRATEGIES)}.")],
        agent_id: Annotated[str, typer.Option("--id", help="The agent's name; its state is kept under it.")],
        api: Annotated[str | None, typer.Option(help="URL of the API; else of the system on this machine.", show_default=False)] = None,
        trust: Annotated[Path | None, typer.Option(help="Key set to trust at first; else the one given.", show_default=False)] = None,
    ) -> None:
        """Run a bot until interrupted: it obeys, trades on paper, reports."""
        here = places()
        log.configure(here.log_level)
        if here.log_level != "DEBUG":
            # The agent says itself, once, that the brokers are gone; the clients would say so many times a second.
            logging.getLogger("mev.bus.kafka").setLevel(logging.CRITICAL)
        if module not in STRATEGIES:
            raise UnknownModuleError(f"no module {module!r}; there are {', '.join(STRATEGIES)}")
        bot = Agent(
            STRATEGIES[module](),
            agent_id,
            locate=lambda: locate(api),
            folder=here.agents,
            trust=read_key_set(trust) if trust else None,
            models=ModelFolder(here.models, fetch_from(lambda: locate(api))),
        )
        with _logged_elsewhere():
            _run(_until_interrupted(bot))

    @agent.command()
    def show(agent_id: Annotated[str, typer.Option("--id", help="The agent's name.")]) -> None:
        """Print what an agent keeps on disk: what it obeys, and how it answered."""
        state = AgentFolder(places().agents, agent_id).load()
        if state is None:
            raise UnknownAgentError(f"no agent {agent_id!r} ran here")
        _show(state)

    return agent


class _Unhurried(QueueHandler):
    """Drops what there is no room for."""

    def enqueue(self, record: logging.LogRecord) -> None:
        with suppress(queue.Full):
            self.queue.put_nowait(record)


@contextmanager
def _logged_elsewhere() -> Iterator[None]:
    """Let a thread write the log: a terminal that was stopped, or a pipe nobody reads, must not stop the agent."""
    root, records = logging.getLogger(), queue.Queue[logging.LogRecord](_WAITING_RECORDS)
    handlers, listener = root.handlers[:], QueueListener(records, *root.handlers)
    root.handlers[:] = [_Unhurried(records)]
    listener.start()
    try:
        yield
    finally:
        root.handlers[:] = handlers
        with suppress(queue.Full):
            listener.stop()


def _run(work: Coroutine[None, None, None]) -> None:
    """Run `work` in the fastest event loop there is."""
    factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    with suppress(ImportError):
        factory = import_module("uvloop").new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(work)


async def _until_interrupted(bot: Agent) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    shown = asyncio.create_task(_status_line(bot, console))
    try:
        await bot.run(stop)
    finally:
        shown.cancel()
        if bot.session is not None:
            before = "\r\x1b[K" if console.is_terminal else ""
            sys.stderr.write(f"{before}{status_text(bot.session)}\n")


async def _status_line(bot: Agent, console: Console) -> None:
    """Keep one line of a terminal up to date; elsewhere print a line when the level, a model or the connection changes."""
    last = ""
    while True:
        if (session := bot.session) is not None:
            models = [session.seats.model_id(role) for role in _ROLES]
            key = f"{session.governor.standing()} {session.connection.problem} {models}"
            if console.is_terminal:
                await in_thread("status-line", partial(_rewrite, status_text(session)))
            elif key != last:
                await in_thread("status-line", partial(console.print, status_text(session), markup=False))
            last = key
        await asyncio.sleep(_REFRESH_S)


def _rewrite(line: str) -> None:
    sys.stderr.write(f"\r\x1b[K{line}")
    sys.stderr.flush()


def status_text(session: Session) -> str:
    """Return the state of a running agent as one line."""
    governor, counts = session.governor, session.trader.counts
    now, lease = governor.standing(), governor.state.lease.expires_at_ns
    left_s = max(0, lease - now_ns()) / 1e9 if lease else 0
    parts = [
        f"{session.identity.agent_id} ({session.identity.module}) {now.level.name}" + (f": {now.stepped_down}" if now.stepped_down else ""),
        f"lease {left_s:.0f} s" if lease else "no lease",
        f"{counts.opportunities} opportunities",
        f"{counts.decisions} decisions",
        f"{session.reporter.published} reports",
    ]
    parts += [f"{_ROLES[use.role]} {use.model_id[:12]}" for use in session.seats.uses()]
    if session.connection.problem:
        parts.append(f"no control plane: {session.connection.problem}")
    return " | ".join(parts)


def _show(state: State) -> None:
    now = now_ns()
    held = standing(state.orders, state.lease, state.latched, Limits(), now)
    typer.echo(f"ordered   {ordered_level(state.orders, now).name}")
    typer.echo(f"allowed   {held.level.name}" + (f" ({held.stepped_down})" if held.stepped_down else ""))
    for role, name in _ROLES.items():
        if (text := _model(state, role)) is not None:
            typer.echo(f"{name:<9} {text}")
    typer.echo(f"lease     {_time(state.lease.expires_at_ns) if state.lease.expires_at_ns else 'none since the last start'}")
    print_table(("object", "version", "command", "accepted", "answer"), [_row(name, one) for name, one in sorted(state.accepted.items())])


def _model(state: State, role: ModelRole) -> str | None:
    """Return which model the agent keeps in that role, if it ever had an order for one that was not refused."""
    for one in state.accepted.values():
        if one.in_force and (swap := one.swap) is not None and swap.role == role:
            return f"{swap.model_id[:12]} version {swap.version}, {swap.model_path}" if swap.model_id else "none"
    return None


def _row(name: str, one: Accepted) -> tuple[str, ...]:
    answer = "not answered" if one.answer is None else one.answer.reason_code or "applied"
    epoch, counter = order(one.command.version)
    return name, f"{epoch}.{counter}", one.command.id, _time(one.received_at_ns), answer


def _time(time_ns: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(time_ns / 1e9))
