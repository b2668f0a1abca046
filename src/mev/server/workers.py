"""The supervisor of `mev up` with workers: it holds the sockets, and runs the processes.

Listener number i (``SO_REUSEPORT``) belongs to worker i. The supervisor keeps it open, so the
connections that wait in it are served by the worker's successor. The control process is replaced
with a pause instead, because it has the data folder for itself; requests for it wait in its socket.
"""

import asyncio
import json
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Self

from prometheus_client import Gauge

from mev.bus.kafka import Brokers
from mev.core.errors import ConflictError, UnavailableError
from mev.core.supervisor import Child, ChildFailedError, RestartPolicy, Supervisor
from mev.host.gather import merge_families, merge_metrics, merge_readiness
from mev.host.health import ProcessStatus, Readiness
from mev.host.machine import MachineMonitor
from mev.host.performance import PerformanceMonitor
from mev.host.process import ProcessMonitor, measured_process
from mev.host.source import SystemLoad, own_metrics
from mev.server.http import (
    Server,
    internal_config,
    listen,
    listen_for_commands,
    listen_locally,
    listeners_at,
    url_of,
)
from mev.server.internal import (
    ALIVE,
    CONTROL_SOCKET,
    FOLDER,
    METRICS,
    PERFORMANCE,
    PERFORMANCE_JSON,
    PROCESS,
    PROCESS_JSON,
    READINESS,
    READINESS_JSON,
    RELOAD,
    SUPERVISOR_SOCKET,
    SYSTEM,
    SYSTEM_JSON,
    ProcessUnavailableError,
    SharedConfig,
    alive,
    ask,
    internal_app,
    is_alive,
)
from mev.server.process import EXIT_GRACE_S
from mev.server.security import jwt_key
from mev.server.system import runtime_of
from mev.server.worker import ProcessSpec
from mev.settings import Settings
from mev.store.boot import locked_folder
from mev.store.folder import LONGEST_SOCKET_PATH_BYTES, master_key

LOG = logging.getLogger(__name__)
UP = Gauge(
    "mev_process_up", "Whether a process of this system answers its supervisor.", ["process"]
)
_START_S = 120.0
_RETRY_S = 1.0
_SUPERVISOR = "supervisor"
_CONTROL = "control"


class ManagedProcess:
    """A process under a name: started again when it ends, and replaced on demand.

    Its methods block, except the properties.
    """

    def __init__(
        self,
        spec: ProcessSpec,
        listeners: Mapping[str, socket.socket],
        folder: Path,
        policy: RestartPolicy,
    ) -> None:
        self.name = spec.name
        self._spec = spec
        self._listeners = listeners
        self._folder = folder
        self._policy = policy
        self._generation = 0
        self._earlier_restarts = 0
        self._stopping = threading.Event()
        self._current: _Generation | None = None

    @property
    def socket_path(self) -> Path | None:
        """Return the path of its internal socket, None while it is stopped."""
        return self._current.path if self._current else None

    @property
    def status(self) -> ProcessStatus:
        """Return its process id, restarts and problem."""
        supervisor = self._current.supervisor if self._current else None
        return ProcessStatus(
            pid=supervisor.pid if supervisor else None,
            restarts=self._earlier_restarts + (supervisor.restarts if supervisor else 0),
            problem=supervisor.problem if supervisor else f"{self.name} is being replaced",
        )

    def start(self) -> None:
        """Start it.

        :raises ChildFailedError: if it does not become ready.
        """
        self._current = self._started()

    def replace(self) -> None:
        """Start a successor on the same listeners; stop this one when the successor is ready.

        :raises ChildFailedError: if the successor does not become ready; nothing changes then.
        """
        former, self._current = self._current, self._started()
        self._end(former)

    def restart(self) -> None:
        """Stop it, then start it again until it becomes ready or the system is stopped."""
        former, self._current = self._current, None
        self._end(former)
        while not self._stopping.is_set():
            try:
                self._current = self._started()
            except ChildFailedError as error:
                LOG.error(
                    "%s does not start: %s; trying again",
                    self.name,
                    error,
                    extra={"action": "process_failed"},
                )
                self._stopping.wait(_RETRY_S)
            else:
                return

    def stop(self) -> None:
        """Stop it for good."""
        self._stopping.set()
        former, self._current = self._current, None
        self._end(former)

    def _started(self) -> "_Generation":
        self._generation += 1
        path = self._folder / f"{self.name}.{self._generation}.sock"
        internal = listen_locally(path)
        sockets = {**self._listeners, "internal": internal}
        spec = replace(self._spec, sockets={name: each.fileno() for name, each in sockets.items()})
        child = Child(
            name=self.name,
            command=spec.command(),
            folder=Path.cwd(),  # settings may be relative paths
            log=None,
            is_well=partial(is_alive, path),
            descriptors=tuple(spec.sockets.values()),
            environment=os.environ,
        )
        generation = _Generation(Supervisor(child, self._policy), internal, path)
        try:
            generation.supervisor.start()
        except ChildFailedError:
            generation.close()
            raise
        return generation

    def _end(self, former: "_Generation | None") -> None:
        if former is not None:
            former.supervisor.stop()
            self._earlier_restarts += former.supervisor.restarts
            former.close()


@dataclass(frozen=True, slots=True)
class _Generation:
    supervisor: Supervisor
    internal: socket.socket
    path: Path

    def close(self) -> None:
        self.internal.close()
        self.path.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Monitors:
    """Measurements of the supervisor: the machine, itself, and all processes as one system."""

    machine: MachineMonitor
    process: ProcessMonitor
    performance: PerformanceMonitor


class Workers:
    """The running processes of one system."""

    def __init__(
        self,
        control: ManagedProcess,
        workers: list[ManagedProcess],
        monitors: Monitors,
        *,
        drain_s: float,
        timeout_s: float,
    ) -> None:
        self._control = control
        self._workers = workers
        self._monitors = monitors
        self._drain_s = drain_s
        self._timeout_s = timeout_s
        self._is_draining = False
        self._turn = asyncio.Lock()

    @property
    def _all(self) -> list[ManagedProcess]:
        return [*self._workers, self._control]

    async def start(self) -> None:
        """Start the control process, then the workers.

        :raises UnavailableError: if one does not become ready.
        """
        try:
            await asyncio.to_thread(self._control.start)
            await asyncio.gather(*(asyncio.to_thread(worker.start) for worker in self._workers))
        except ChildFailedError as error:
            raise UnavailableError(
                f"a process of this system did not start: {error}; the reason is in the log above",
                code="process_failed",
            ) from None

    async def stop(self) -> None:
        """Stop the workers, then the control process."""
        await asyncio.gather(*(asyncio.to_thread(worker.stop) for worker in self._workers))
        await asyncio.to_thread(self._control.stop)

    async def drain(self) -> None:
        """Report that the system is not ready, for as long as balancers need to notice."""
        self._is_draining = True
        await asyncio.sleep(self._drain_s)

    async def reload(self) -> bytes:
        """Replace the workers one at a time, then the control process.

        Return, as JSON, the seconds that each took, or why it was not replaced.
        """
        async with self._turn:
            report: dict[str, object] = {}
            for worker in self._workers:
                report[worker.name] = await self._timed(worker.name, worker.replace)
            report[self._control.name] = await self._timed(_CONTROL, self._control.restart)
            return json.dumps(report).encode()

    async def _timed(self, name: str, replace_it: Callable[[], None]) -> dict[str, object]:
        began = time.monotonic()
        try:
            await asyncio.to_thread(replace_it)
        except ChildFailedError as error:
            LOG.error(
                "%s was not replaced, its successor did not start: %s",
                name,
                error,
                extra={"action": "reload_failed"},
            )
            return {"problem": str(error)}
        seconds = round(time.monotonic() - began, 3)
        LOG.info("%s was replaced in %.1f s", name, seconds, extra={"action": "reloaded"})
        return {"seconds": seconds}

    async def metrics(self) -> bytes:
        """Return the metrics of all processes, the supervisor's included."""
        found = await self._ask_all(METRICS)
        for process in self._all:
            UP.labels(process.name).set(process.name in found)
        return merge_metrics({**found, _SUPERVISOR: await own_metrics()})

    async def performance(self) -> bytes:
        """Return the latencies and rates of all processes together, as JSON."""
        families = merge_families(await self._ask_all(METRICS))
        return PERFORMANCE_JSON.dump_json(self._monitors.performance.report(families))

    async def system(self) -> bytes:
        """Return the load of the machine and of each process, as JSON."""
        loads = {
            name: PROCESS_JSON.validate_json(text)
            for name, text in (await self._ask_all(PROCESS)).items()
        }
        loads[_SUPERVISOR] = await self._monitors.process.report()
        machine = await self._monitors.machine.report()
        return SYSTEM_JSON.dump_json(SystemLoad(machine=machine, processes=loads))

    async def readiness(self) -> bytes:
        """Return the readiness of the system as JSON."""
        found = {
            name: READINESS_JSON.validate_json(text)
            for name, text in (await self._ask_all(READINESS)).items()
        }
        return READINESS_JSON.dump_json(self._merged(found))

    def _merged(self, found: Mapping[str, Readiness]) -> Readiness:
        statuses = {process.name: process.status for process in self._all}
        return merge_readiness(found, statuses, is_draining=self._is_draining)

    async def _ask_all(self, target: str) -> dict[str, bytes]:
        answers = await asyncio.gather(*(self._ask(process, target) for process in self._all))
        return {
            process.name: answer
            for process, answer in zip(self._all, answers, strict=True)
            if answer is not None
        }

    async def _ask(self, process: ManagedProcess, target: str) -> bytes | None:
        path = process.socket_path
        with suppress(ProcessUnavailableError):
            if path is not None:
                return await ask(path, target, timeout_s=self._timeout_s)
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisedSystem:
    """A running system of several processes, as shown to its operator."""

    api_url: str
    master_key: str
    services: dict[str, str]
    serve: Callable[[], Awaitable[None]]


@asynccontextmanager
async def running_workers(settings: Settings, *, demo: bool) -> AsyncIterator[SupervisedSystem]:
    """Start all processes, yield the system, and stop them in reverse order.

    :raises ConflictError: if the API's address cannot be used, or the data folder's path is too
        long for its sockets.
    :raises UnavailableError: if a process does not become ready.
    """
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(locked_folder(settings))
        shown_key = master_key(settings, folder)
        jwt_key(settings, folder)  # created before several processes read it
        sockets = _clean_folder(folder.path)
        tcp = [stack.enter_context(each) for each in _listen_shared(settings)]
        local = _ControlListeners(
            commands=listen_for_commands(folder.path, stack),
            forwarded=stack.enter_context(listen_locally(sockets / CONTROL_SOCKET)),
        )
        monitors = Monitors(
            machine=MachineMonitor(folder.path),
            process=await stack.enter_async_context(measured_process()),
            performance=PerformanceMonitor(),
        )
        workers = _describe(settings, sockets, tcp, local, monitors, demo=demo)
        signals = stack.enter_context(_Signals(workers))
        server = _internal_server(workers, listen_locally(sockets / SUPERVISOR_SOCKET))
        await stack.enter_async_context(_serving(server))
        stack.push_async_callback(workers.stop)
        await workers.start()
        own = listeners_at(tcp[0], local.commands)
        brokers = Brokers(servers=settings.kafka_brokers or "")
        folder.write_runtime(runtime_of(own, brokers))
        yield SupervisedSystem(
            api_url=own.url,
            master_key=shown_key,
            services={"kafka": brokers.servers, "workers": str(len(tcp))},
            serve=signals.wait_for_stop,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _ControlListeners:
    commands: socket.socket | None
    forwarded: socket.socket

    def named(self) -> dict[str, socket.socket]:
        found = {"commands": self.commands, "forwarded": self.forwarded}
        return {name: each for name, each in found.items() if each is not None}


def _clean_folder(data: Path) -> Path:
    sockets = data / FOLDER
    longest = sockets / "control.1000000.sock"
    if len(os.fsencode(longest)) > LONGEST_SOCKET_PATH_BYTES:
        raise ConflictError(
            f"{sockets} is too long for the Unix sockets between the processes; choose a shorter "
            "MEV_DATA_DIR, or set API_WORKERS=1",
            code="data_folder_path_too_long",
        )
    sockets.mkdir(exist_ok=True, mode=0o700)
    for left_over in sockets.glob("*.sock"):
        left_over.unlink()
    SharedConfig(sockets).clear()
    return sockets


def _listen_shared(settings: Settings) -> list[socket.socket]:
    # Without SO_REUSEPORT first: another system at this address must be an error.
    with listen(settings.api_host, settings.api_port) as probe:
        host, port = probe.getsockname()[:2]
    return [listen(host, port, shared=True) for _ in range(settings.effective_workers)]


def _describe(
    settings: Settings,
    sockets: Path,
    tcp: Sequence[socket.socket],
    local: _ControlListeners,
    monitors: Monitors,
    *,
    demo: bool,
) -> Workers:
    policy = RestartPolicy(
        start_s=_START_S,
        stop_s=settings.drain_s + settings.shutdown_timeout_s + EXIT_GRACE_S,
        probe_s=settings.child_probe_s,
        hang_s=settings.child_hang_s,
        pause_max_s=settings.child_restart_max_s,
    )
    url, host = url_of(tcp[0]), str(tcp[0].getsockname()[0])
    control = ProcessSpec(role="control", name=_CONTROL, url=url, host=host, sockets={}, demo=demo)
    return Workers(
        ManagedProcess(control, local.named(), sockets, policy),
        [
            ManagedProcess(
                ProcessSpec(role="api", name=f"api-{number}", url=url, host=host, sockets={}),
                {"tcp": listener},
                sockets,
                policy,
            )
            for number, listener in enumerate(tcp)
        ],
        monitors,
        drain_s=settings.drain_s,
        timeout_s=settings.service_timeout_s + 1,
    )


def _internal_server(workers: Workers, listener: socket.socket) -> Server:
    config = internal_config(
        internal_app(
            {
                ALIVE: alive,
                METRICS: workers.metrics,
                READINESS: workers.readiness,
                PERFORMANCE: workers.performance,
                SYSTEM: workers.system,
                RELOAD: workers.reload,
            }
        )
    )
    return Server(config, local=[(listener, config)], handles_signals=False)


@asynccontextmanager
async def _serving(server: Server) -> AsyncIterator[None]:
    task = asyncio.create_task(server.serve(sockets=[]))
    try:
        yield
    finally:
        server.should_exit = True
        await task


class _Signals:
    """Handlers of the signals of this process: stop on SIGINT and SIGTERM, reload on SIGHUP."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._stop = asyncio.Event()
        self._reload: asyncio.Task[bytes] | None = None

    def __enter__(self) -> Self:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, self._start_reload)
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop.set)
        return self

    def __exit__(self, *_: object) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)

    async def wait_for_stop(self) -> None:
        """Return when the system is to stop and balancers have noticed."""
        await self._stop.wait()
        await self._workers.drain()

    def _start_reload(self) -> None:
        self._reload = asyncio.create_task(self._workers.reload())
