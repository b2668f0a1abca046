"""One run of an agent, from its state on disk to an orderly stop.

Six tasks: one watches the clock, one obeys, one trades, one scores in the shadow, one reports, one keeps the connection. The first waits
for nothing but time, so that the agent steps down on time whatever the disk and the brokers do; only the second takes orders, one envelope
at a time. Models are loaded beside them all, and come to the second as the orders do.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from mev.agent.clock import Clock
from mev.agent.connection import Connection
from mev.agent.enrolment import Locate, Welcome
from mev.agent.folder import AgentFolder, Counter
from mev.agent.governor import Governor
from mev.agent.judge import SECOND_NS, Identity, Prepared, Ruling
from mev.agent.level import Limits, Standing
from mev.agent.link import Inbox, Link
from mev.agent.model import ModelSource
from mev.agent.preparation import Preparations
from mev.agent.repertoire import Repertoire, Setting
from mev.agent.report import Reporter
from mev.agent.seats import Seats
from mev.agent.shadow import Shadow
from mev.agent.state import Answer, State
from mev.agent.strategy import Desk, Param, Strategy, Value
from mev.agent.trader import TOPIC, Trader
from mev.bus.follow import Followed
from mev.crypto.envelope import parse, parse_message
from mev.crypto.keys import SigningKey
from mev.crypto.trust import TrustStore
from mev.wire.pb.control_pb2 import ACK, NACK, PRODUCTION, SHADOW, STATUS, Report, Result
from mev.wire.pb.envelope_pb2 import KeySet
from mev.wire.topics import REPORT

LOG = logging.getLogger(__name__)
_TICK_S = 0.2
_LAST_REPORT_S = 3.0
_SILENCE_LEASES = 2.0
_LEAST_SILENCE_S = 5.0
Item = Welcome | Prepared | tuple[Followed, int]


class Session:
    """Everything that runs; made in the event loop. `state` is what the folder holds."""

    def __init__(
        self,
        identity: Identity,
        strategy: Strategy,
        folder: AgentFolder,
        key: SigningKey,
        state: State,
        *,
        locate: Locate,
        models: ModelSource,
        limits: Limits,
        clock: Clock,
        timeout_s: float,
    ) -> None:
        interval = Param(type="number", description="Pause between signs of life, seconds.", minimum=0.1, maximum=60)
        self.seats = Seats(clock)
        repertoire = Repertoire(strategy, {"report_interval_s": Setting(interval, self._set_interval)}, self.seats)
        trust = TrustStore(parse_message(KeySet, parse(state.key_set).payload))
        self.identity = identity
        self._strategy = strategy
        self._clock = clock
        self._started_ns = time.monotonic_ns()
        self._heard = time.monotonic()
        self._status_due = 0.0
        self._told: tuple[Standing, int, str, str] | None = None
        self._interval_s: float | None = None
        self._given_interval_s = 2.0
        self._lease_ttl_s = 10.0
        self._loop = asyncio.get_running_loop()
        # A thread of its own: whatever else blocks, obeying does not wait for a thread.
        self._disk = ThreadPoolExecutor(1, "agent-state")
        self._inbox: Inbox[Item] = Inbox()
        self.link = Link(self._inbox, [TOPIC], self._lost, clock, timeout_s=timeout_s)
        self.governor = Governor(
            identity, strategy, repertoire, self.seats, folder, state, trust, limits=limits, clock=clock, report=self._answer
        )
        self.preparations = Preparations(models, self._inbox.push, self.governor.refuse, clock)
        counter = Counter(folder.path / "counter")
        self.reporter = Reporter(key, counter, partial(self.link.publish, REPORT), self.governor.note_reported, clock)
        self.shadow = Shadow(identity.agent_id, self.seats.shadow, self.link.publish, clock)
        self.trader = Trader(strategy, self.governor.level, self.link, self.seats.production, self.shadow.offer)
        self.connection = Connection(identity, strategy, key.public_key, locate, self.link, self._inbox.push, timeout_s=timeout_s)

    async def run(self, stop: asyncio.Event) -> None:
        """Run until `stop` is set; the last report says that somebody stopped it."""
        self._strategy.on_start(Desk(self.identity.agent_id, self._clock, self.governor.level))
        self.governor.start()
        self._restore()
        try:
            async with asyncio.TaskGroup() as group:
                works = (self._watch, self.trader.run, self.shadow.run, self.connection.run, self.reporter.run)
                others = [group.create_task(work()) for work in works]
                await self._obey(stop)
                await self._say_goodbye()
                for task in others:
                    task.cancel()
        finally:
            self.preparations.close()
            await self.link.close()
            self._disk.shutdown(wait=False)

    async def _watch(self) -> None:
        """Let time take effect and tell of it."""
        while True:
            self.governor.refresh()
            self._tell()
            due_ns = self.governor.next_change_ns()
            await asyncio.sleep(_TICK_S if due_ns is None else min(_TICK_S, max(0.0, (due_ns - self._clock()) / SECOND_NS)))

    async def _obey(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            item = await self._next()
            if isinstance(item, Welcome):
                await self._begin(item)
            elif isinstance(item, Prepared):
                await self._settle(item)
            elif item is not None:
                await self._take(*item)
            await self._save()
            self._listen()

    async def _next(self) -> Item | None:
        """Return what came, or nothing when it is time to look after the rest."""
        try:
            async with asyncio.timeout(_TICK_S):
                return await self._inbox.get()
        except TimeoutError:
            return None

    async def _begin(self, welcome: Welcome) -> None:
        """Take the state to begin from: the keys first, which the rest is signed with."""
        self._lease_ttl_s = welcome.lease_ttl_s
        self._given_interval_s = welcome.report_interval_s
        self._heard = time.monotonic()
        for envelope in (welcome.key_set, welcome.snapshot):
            await self._govern(partial(self.governor.decide, envelope, self._clock()))
        self._restore()

    async def _take(self, followed: Followed, received_at_ns: int) -> None:
        self._heard = time.monotonic()
        for envelope in followed.values:
            await self._govern(partial(self.governor.decide, envelope, received_at_ns))
        if followed.lost:
            self._lost(f"{followed.lost} messages of the control topic are gone")

    def _restore(self) -> None:
        """Load again what an earlier process accepted, and what could not be loaded then."""
        for wanted in self.governor.absent():
            self.preparations.begin(wanted, self.governor.trust)

    async def _settle(self, prepared: Prepared) -> None:
        """Obey a swap whose model was loaded, or answer why it was not."""
        if prepared.wanted.accepted:
            self.governor.restore(prepared)
        elif prepared.epoch != self.governor.trust.epoch:
            # The keys were rotated meanwhile: what was checked under the old ones counts no more.
            self.preparations.begin(prepared.wanted, self.governor.trust)
        else:
            await self._govern(partial(self.governor.decide_again, prepared))

    async def _govern(self, decide: Callable[[], Ruling]) -> None:
        try:
            while not self.governor.holds(ruling := await self._loop.run_in_executor(self._disk, decide)):
                pass
        except OSError as error:
            # What cannot be remembered cannot be obeyed safely, not even an order to stop: so stop.
            LOG.exception("the state cannot be written", extra={"action": "state_failed"})
            self.governor.stop(f"the state cannot be written: {error.strerror}")
            return
        self.governor.enact(ruling)
        for effect in ruling.effects:
            self.preparations.overtaken(effect.command)
        for wanted in ruling.wanted.values():
            self.preparations.begin(wanted, self.governor.trust)

    def _tell(self) -> None:
        """Report what changed, and otherwise now and then that nothing did."""
        now = time.monotonic()
        told = (self.governor.standing(), self.governor.trust.epoch, self.seats.model_id(PRODUCTION), self.seats.model_id(SHADOW))
        if told != self._told or now >= self._status_due:
            self._told = told
            self._status_due = now + (self._interval_s or self._given_interval_s)
            self.reporter.status(self._report("", STATUS, Answer()))

    def _listen(self) -> None:
        """Ask for a new connection when it has been silent for long."""
        now = time.monotonic()
        if now - self._heard > max(self._lease_ttl_s * _SILENCE_LEASES, _LEAST_SILENCE_S):
            self._heard = now
            self._lost("nothing came on the control topic for longer than a lease")

    async def _save(self) -> None:
        """Put on disk what took effect by time alone; nothing depends on it being there at once."""
        if (state := self.governor.pending_save()) is None:
            return
        try:
            await self._loop.run_in_executor(self._disk, self.governor.save, state)
        except OSError:
            LOG.exception("the state cannot be written", extra={"action": "state_failed"})

    async def _say_goodbye(self) -> None:
        self.governor.stop("stopped by operator")
        self.reporter.status(self._report("", STATUS, Answer()))
        if not await self.reporter.flush(_LAST_REPORT_S):
            LOG.warning("%d reports could not be sent", self.reporter.waiting, extra={"action": "reports_lost"})
        await self._save()

    def _lost(self, reason: str) -> None:
        self.connection.lost(reason)

    def _set_interval(self, value: Value) -> None:
        self._interval_s = float(value)

    def _answer(self, command_id: str, answer: Answer) -> None:
        self.reporter.answer(self._report(command_id, NACK if answer.reason_code else ACK, answer))

    def _report(self, command_id: str, result: Result, answer: Answer) -> Report:
        return Report(
            agent_id=self.identity.agent_id,
            module=self.identity.module,
            command_id=command_id,
            result=result,
            reason_code=answer.reason_code,
            detail=answer.detail,
            received_at_ns=answer.received_at_ns,
            applied_at_ns=answer.applied_at_ns,
            running=self.governor.running(),
            uptime_ns=time.monotonic_ns() - self._started_ns,
        )
