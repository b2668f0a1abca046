"""One run of an agent, from its stored state to an orderly stop.

Six tasks: clock, commands, trading, shadow scoring, reports and connection. The clock task only
waits for time, so that the agent steps down on time whatever the disk and the brokers do. Only the
command task processes envelopes, one at a time. Loaded models arrive in its queue.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from mev.agent.active_models import ActiveModels
from mev.agent.command_handlers import CommandHandlers, Setting
from mev.agent.command_processor import CommandProcessor
from mev.agent.command_verifier import SECOND_NS, Identity, Prepared, Transition
from mev.agent.control_plane_session import ControlPlaneSession
from mev.agent.enrolment import Locate, Welcome
from mev.agent.folder import AgentFolder, DurableCounter
from mev.agent.kafka_clients import Inbox, KafkaClients
from mev.agent.level import EffectiveLevel, LeaseLimits
from mev.agent.model_loader import ModelLoader
from mev.agent.model_source import ModelSource
from mev.agent.report import Reporter
from mev.agent.shadow import Shadow
from mev.agent.state import AgentState, CommandResult
from mev.agent.strategy import AGENT_CONFIGS, Strategy, StrategyContext, Value
from mev.agent.trader import TOPIC, Trader
from mev.bus.follow import Followed
from mev.core.clock import Clock
from mev.crypto.envelope import parse, parse_message
from mev.crypto.keys import SigningKey
from mev.crypto.trust import TrustStore
from mev.wire.pb.control_pb2 import ACK, NACK, PRODUCTION, SHADOW, STATUS, Report, Result
from mev.wire.pb.envelope_pb2 import KeySet
from mev.wire.topics import REPORT

LOG = logging.getLogger(__name__)
_TICK_S = 0.5
_HOUSEKEEPING_S = 0.5
_LAST_REPORT_S = 3.0
_SILENCE_LEASES = 2.0
_LEAST_SILENCE_S = 5.0
Item = Welcome | Prepared | tuple[Followed, int]


class AgentRun:
    """All tasks of a running agent, created in the event loop; `state` is the stored state."""

    def __init__(
        self,
        identity: Identity,
        strategy: Strategy,
        folder: AgentFolder,
        key: SigningKey,
        state: AgentState,
        *,
        locate: Locate,
        models: ModelSource,
        limits: LeaseLimits,
        clock: Clock,
        timeout_s: float,
    ) -> None:
        self.active_models = ActiveModels(clock)
        handlers = CommandHandlers(
            strategy,
            {"report_interval_s": Setting(AGENT_CONFIGS["report_interval_s"], self._set_interval)},
            self.active_models,
        )
        trust = TrustStore(parse_message(KeySet, parse(state.key_set).payload))
        self.identity = identity
        self._strategy = strategy
        self._clock = clock
        self._started_ns = time.monotonic_ns()
        self._heard = time.monotonic()
        self._status_due = 0.0
        self._told: tuple[EffectiveLevel, int, tuple[str, str], str] | None = None
        self._blocked_by = ""
        self._interval_s: float | None = None
        self._given_interval_s = 2.0
        self._lease_ttl_s = 10.0
        self._loop = asyncio.get_running_loop()
        # A separate thread: other blocking work must not delay commands.
        self._disk = ThreadPoolExecutor(1, "agent-state")
        self._inbox: Inbox[Item] = Inbox()
        self.kafka = KafkaClients(self._inbox, [TOPIC], self._lost, clock, timeout_s=timeout_s)
        self.processor = CommandProcessor(
            identity,
            strategy,
            handlers,
            self.active_models,
            folder,
            state,
            trust,
            limits=limits,
            clock=clock,
            report=self._answer,
        )
        self.model_loader = ModelLoader(models, self._inbox.push, self.processor.refuse, clock)
        counter = DurableCounter(folder.path / "counter")
        self.reporter = Reporter(
            key, counter, partial(self.kafka.publish, REPORT), self.processor.note_reported, clock
        )
        self.shadow = Shadow(
            identity.agent_id, self.active_models.shadow, self.kafka.publish, clock
        )
        self.trader = Trader(
            strategy,
            self.processor.level,
            self.kafka,
            self.active_models.production,
            self.shadow.offer,
        )
        self.control_plane = ControlPlaneSession(
            identity, strategy, key, locate, self.kafka, self._inbox.push, timeout_s=timeout_s
        )

    async def run(self, stop: asyncio.Event) -> None:
        """Run until `stop` is set; the last report says that an operator stopped the agent."""
        self._strategy.on_start(
            StrategyContext(self.identity.agent_id, self._clock, self.processor.level)
        )
        self.processor.start()
        self._restore()
        try:
            async with asyncio.TaskGroup() as group:
                works = (
                    self._watch,
                    self.trader.run,
                    self.shadow.run,
                    self.control_plane.run,
                    self.reporter.run,
                )
                others = [group.create_task(work()) for work in works]
                await self._obey(stop)
                await self._say_goodbye()
                for task in others:
                    task.cancel()
        finally:
            self.model_loader.close()
            await self.kafka.close()
            self._disk.shutdown(wait=False)

    async def _watch(self) -> None:
        """Apply effects of time and report them."""
        while True:
            self.processor.refresh()
            self._tell()
            due_ns = self.processor.next_change_ns()
            await asyncio.sleep(
                _TICK_S
                if due_ns is None
                else min(_TICK_S, max(0.0, (due_ns - self._clock()) / SECOND_NS))
            )

    async def _obey(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            item = await self._next()
            if isinstance(item, Welcome):
                await self._begin(item)
            elif isinstance(item, Prepared):
                await self._settle(item)
            elif item is not None:
                await self._take(*item)
            if item is not None:
                self._tell()
            self.model_loader.try_unsigned_again(self.processor.trust)
            await self._save()
            self._listen()

    async def _next(self) -> Item | None:
        """Return the next item, or None when periodic work is due."""
        try:
            async with asyncio.timeout(_HOUSEKEEPING_S):
                return await self._inbox.get()
        except TimeoutError:
            return None

    async def _begin(self, welcome: Welcome) -> None:
        """Process the initial state: the key set first, since it verifies the snapshot."""
        self._lease_ttl_s = welcome.lease_ttl_s
        self._given_interval_s = welcome.report_interval_s
        self._heard = time.monotonic()
        for envelope in (welcome.key_set, welcome.snapshot):
            await self._process(partial(self.processor.decide, envelope, self._clock()))
        self._restore()

    async def _take(self, followed: Followed, received_at_ns: int) -> None:
        self._heard = time.monotonic()
        for envelope in followed.values:
            await self._process(partial(self.processor.decide, envelope, received_at_ns))
        if followed.lost:
            self._lost(f"{followed.lost} messages of the control topic are gone")

    def _restore(self) -> None:
        """Load models of accepted swaps that are not loaded."""
        for wanted in self.processor.absent():
            self.model_loader.begin(wanted, self.processor.trust)

    async def _settle(self, prepared: Prepared) -> None:
        """Process a swap whose model was loaded or failed to load."""
        if prepared.wanted.accepted:
            self.processor.restore(prepared)
        elif prepared.epoch != self.processor.trust.epoch:
            # The keys were rotated meanwhile: the checks under the old keys do not count.
            self.model_loader.begin(prepared.wanted, self.processor.trust)
        else:
            await self._process(partial(self.processor.decide_again, prepared))

    async def _process(self, decide: Callable[[], Transition]) -> None:
        try:
            while not self.processor.holds(
                transition := await self._loop.run_in_executor(self._disk, decide)
            ):
                pass
        except OSError as error:
            # Without stored state no command is safe, not even a stop: so stop.
            LOG.exception("the state cannot be written", extra={"action": "state_failed"})
            self.processor.stop(f"the state cannot be written: {error.strerror}")
            return
        self.processor.enact(transition)
        for effect in transition.effects:
            self.model_loader.overtaken(effect.command)
        for wanted in transition.wanted.values():
            self.model_loader.begin(wanted, self.processor.trust)

    def _tell(self) -> None:
        """Report each change, and otherwise at the report interval."""
        now = time.monotonic()
        blocked_by = ", ".join(self.processor.blocked_by())
        if blocked_by != self._blocked_by:
            self._blocked_by = blocked_by
            LOG.warning(
                "nothing is sent: %s" if blocked_by else "decisions are sent again%s",
                blocked_by,
                extra={"action": "blocked"},
            )
        models = self.active_models.model_id(PRODUCTION), self.active_models.model_id(SHADOW)
        told = (self.processor.standing(), self.processor.trust.epoch, models, blocked_by)
        if told != self._told or now >= self._status_due:
            self._told = told
            self._status_due = now + (self._interval_s or self._given_interval_s)
            self.reporter.status(self._report("", STATUS, CommandResult()))

    def _listen(self) -> None:
        """Request a new connection after a long silence."""
        now = time.monotonic()
        if now - self._heard > max(self._lease_ttl_s * _SILENCE_LEASES, _LEAST_SILENCE_S):
            self._heard = now
            self._lost("nothing came on the control topic for longer than a lease")

    async def _save(self) -> None:
        """Store changes that time alone caused; they can be derived again if lost."""
        if (state := self.processor.pending_save()) is None:
            return
        try:
            await self._loop.run_in_executor(self._disk, self.processor.save, state)
        except OSError:
            LOG.exception("the state cannot be written", extra={"action": "state_failed"})

    async def _say_goodbye(self) -> None:
        self.processor.stop("stopped by operator")
        self.reporter.status(self._report("", STATUS, CommandResult()))
        if not await self.reporter.flush(_LAST_REPORT_S):
            LOG.warning(
                "%d reports could not be sent",
                self.reporter.waiting,
                extra={"action": "reports_lost"},
            )
        await self._save()

    def _lost(self, reason: str) -> None:
        self.control_plane.lost(reason)

    def _set_interval(self, value: Value) -> None:
        self._interval_s = float(value)

    def _answer(self, command_id: str, answer: CommandResult) -> None:
        self.reporter.answer(self._report(command_id, NACK if answer.reason_code else ACK, answer))

    def _report(self, command_id: str, result: Result, answer: CommandResult) -> Report:
        return Report(
            agent_id=self.identity.agent_id,
            module=self.identity.module,
            command_id=command_id,
            result=result,
            reason_code=answer.reason_code,
            detail=answer.detail,
            received_at_ns=answer.received_at_ns,
            applied_at_ns=answer.applied_at_ns,
            running=self.processor.running(),
            uptime_ns=time.monotonic_ns() - self._started_ns,
        )
