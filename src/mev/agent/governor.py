"""The agent's obedience: what was judged is put on disk, then takes effect, then is answered.

:meth:`Governor.decide` judges and stores, and may run in a thread; :meth:`Governor.enact` and the rest belong to the event loop. One
envelope is decided and enacted before the next; time goes on meanwhile, and a step-down then is not undone by what was being decided.
Killed at any point, the next start finds either the state before a command or the state after it, and never obeys anything older.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from mev.agent.clock import Clock
from mev.agent.folder import AgentFolder
from mev.agent.judge import Identity, Judge, Prepared, Ruling, Wanted
from mev.agent.level import Lease, Level, Limits, Standing, latch, next_change_ns, standing
from mev.agent.model import Loaded
from mev.agent.policy import Policies
from mev.agent.refusal import FailedError, InterruptedCommandError, RefusedError, RolledBackError
from mev.agent.repertoire import Repertoire
from mev.agent.seats import Seats
from mev.agent.state import Accepted, Answer, State
from mev.agent.strategy import Strategy
from mev.core.errors import MevError
from mev.crypto.trust import TrustStore
from mev.wire.orders import subject
from mev.wire.pb.control_pb2 import PRODUCTION, Command, Running

LOG = logging.getLogger(__name__)
_KEPT_REFUSALS = 256
Report = Callable[[str, Answer], None]


@dataclass(slots=True)
class _Allowance:
    """Lets a few through, then one now and then; counts the rest."""

    burst: float
    per_s: float
    tokens: float = 0.0
    at_ns: int = 0
    withheld: int = 0

    def take(self, now_ns: int) -> bool:
        self.tokens = min(self.burst, self.tokens + max(0, now_ns - self.at_ns) * self.per_s / 1e9)
        self.at_ns = now_ns
        if self.tokens < 1:
            self.withheld += 1
            return False
        self.tokens -= 1
        return True


class Governor:
    """Takes envelopes, keeps the state, drives the strategy; `report` hears every answer, with an empty id when nobody vouches for it."""

    def __init__(
        self,
        identity: Identity,
        strategy: Strategy,
        repertoire: Repertoire,
        seats: Seats,
        folder: AgentFolder,
        state: State,
        trust: TrustStore,
        *,
        limits: Limits,
        clock: Clock,
        report: Report,
    ) -> None:
        self.state = state
        self.trust = trust
        self._strategy = strategy
        self._repertoire = repertoire
        self._seats = seats
        self._folder = folder
        self._limits = limits
        self._clock = clock
        self._report = report
        self._judge = Judge(identity, repertoire, limits, clock)
        self._shown: Standing | None = None
        self._policies: dict[str, Command] | None = None
        self._forged = _Allowance(burst=5, per_s=0.1)
        self._repeats = _Allowance(burst=50, per_s=1)
        self._refused: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._saved = state
        self._stopped = ""
        self._newly_reported: set[str] = set()

    def level(self) -> Level:
        """Return the level in force at this moment: a lease that has just run out counts at once."""
        return self.standing().level

    def standing(self) -> Standing:
        """Return what the agent may do at this moment, and why."""
        state = self.state
        found = standing(state.orders, state.lease, state.latched, self._limits, self._clock())
        return replace(found, level=Level.HALTED, stepped_down=self._stopped) if self._stopped else found

    def start(self) -> None:
        """Give the strategy what is in force, and answer what an earlier process accepted and could not answer.

        A swap of models is answered when its model is loaded again: see :meth:`absent`.
        """
        for name, one in self.state.accepted.items():
            if name.startswith("config:"):
                self._guard(partial(self._repertoire.configure, one.command.config))
        self.refresh()
        for one in list(self.state.accepted.values()):
            if one.answer is None and one.swap is not None and one.swap.model_id:
                continue
            if one.answer is None and one.command.WhichOneof("body") == "action":
                self._answer(one.command.id, _refusal(InterruptedCommandError("the agent ended meanwhile"), one.received_at_ns))
            elif one.answer is None:
                self._answer(one.command.id, Answer(received_at_ns=one.received_at_ns, applied_at_ns=self._clock()))
            elif not one.reported:
                self._report(one.command.id, one.answer)

    def decide(self, envelope: bytes, received_at_ns: int) -> Ruling:
        """Judge `envelope` and put what follows on disk. Blocks on the disk; changes nothing else."""
        return self._kept(self._judge.rule(envelope, received_at_ns, self.state, self.trust))

    def decide_again(self, prepared: Prepared) -> Ruling:
        """Judge a swap whose model was loaded, or could not be, as :meth:`decide` does."""
        return self._kept(self._judge.rule_again(prepared, self.state, self.trust))

    def holds(self, ruling: Ruling) -> bool:
        """Say whether `ruling` may take effect: not when the agent stepped down while it was made, then it is to be decided again."""
        self.refresh()
        return self.state.latched == ruling.before.latched

    def enact(self, ruling: Ruling) -> None:
        """Let a ruling that is on disk, and :meth:`holds`, take effect, and answer."""
        self.state, self.trust = ruling.state, ruling.trust
        self.refresh()
        for effect in ruling.effects:
            self._answer(effect.command.id, self._perform(effect, ruling.loaded))
        for command_id, answer in ruling.answers:
            self._repeat(command_id, answer)
        for answer in ruling.forged:
            self._refuse_forged(answer)

    def absent(self) -> list[Wanted]:
        """Return the swaps that are in force and whose models are not in their places, as after a start."""
        swaps = [(one, one.swap) for one in self.state.accepted.values() if one.in_force]
        away = [one for one, swap in swaps if swap is not None and not self._seats.holds(swap)]
        return [Wanted(one.command, one.received_at_ns, answered=one.answer is not None) for one in away]

    def restore(self, prepared: Prepared) -> None:
        """Put a model in the place that it had in an earlier process, and answer for it when that process could not."""
        command, received_at_ns = prepared.wanted.command, prepared.wanted.received_at_ns
        now = self.state.accepted.get(subject(command))
        if now is None or now.command.id != command.id:
            self.refuse(prepared.wanted, RolledBackError("something newer was accepted before its model was loaded again"))
        elif isinstance(prepared.outcome, MevError):
            if now.answer is None:
                self._answer(command.id, _refusal(prepared.outcome, received_at_ns))
        else:
            answer = self._perform(now, prepared.outcome)
            if now.answer is None:
                self._answer(command.id, answer)

    def refuse(self, wanted: Wanted, error: MevError) -> None:
        """Answer a swap that comes to nothing."""
        if not wanted.answered:
            self._repeat(wanted.command.id, _refusal(error, wanted.received_at_ns))

    def refresh(self) -> None:
        """Let what follows from time alone take effect: leases that ran out, levels that return, policies that begin.

        It waits for nothing, and may be called while an envelope is being decided.
        """
        now_ns = self._clock()
        self.state = replace(self.state, latched=latch(self.state.lease, self.state.latched, self._limits, now_ns))
        policies = self.state.policies(now_ns)
        if policies != self._policies:
            self._policies = policies
            self._guard(lambda: self._strategy.on_policies(Policies([one.policy for one in policies.values()])))
        now = self.standing()
        if now != self._shown:
            self._shown = now
            LOG.info("level %s %s", now.level.name, now.stepped_down, extra={"action": "level"})
            self._guard(lambda: self._strategy.on_level(now.level, now.stepped_down))

    def pending_save(self) -> State | None:
        """Return the state when the disk has not got all of it. Not called while an envelope is being decided."""
        if self._newly_reported:
            self.state, self._newly_reported = self.state.reported(self._newly_reported), set()
        return self.state if self.state != self._saved else None

    def save(self, state: State) -> None:
        """Put `state` on disk. Blocks on the disk."""
        self._folder.save(state)
        self._saved = state

    def note_reported(self, command_ids: set[str]) -> None:
        """Note that the brokers have the answers to these commands."""
        # Answers enter the state only between two envelopes; this may be called while one is being decided.
        self._newly_reported |= command_ids

    def next_change_ns(self) -> int | None:
        """Return when something may change by itself next."""
        now_ns = self._clock()
        times = [one.command.policy.effective_from_ns for one in self.state.accepted.values()]
        due = next_change_ns(self.state.orders, self.state.lease, self._limits, now_ns)
        return min([time for time in times if time > now_ns] + ([due] if due is not None else []), default=None)

    def stop(self, reason: str) -> None:
        """Halt for good, because somebody here said so. The next start waits for a new lease and is not stepped down by the old one."""
        self.refresh()
        self.state = replace(self.state, lease=Lease(self.state.lease.version, None))
        self._stopped = reason
        self.refresh()

    def running(self) -> Running:
        """Return what is in force, as reports say it."""
        now, state = self.standing(), self.state
        accepted = [one.command for one in state.accepted.values() if one.in_force]
        swaps = [one.model for one in accepted if one.WhichOneof("body") == "model" and one.model.role == PRODUCTION]
        # What an earlier process accepted does not decide before it is loaded again.
        model = next((swap for swap in swaps if self._seats.holds(swap)), None)
        return Running(
            level=now.level.name,
            ordered_level=now.ordered.name,
            policies={policy_id: one.version for policy_id, one in state.policies(self._clock()).items()},
            configs={one.config.config_key: one.version for one in accepted if one.WhichOneof("body") == "config"},
            model_id=model.model_id if model else "",
            model_version=model.version if model else "",
            model_sha256=model.sha256 if model else b"",
            lease_expires_at_ns=state.lease.expires_at_ns or 0,
            stepped_down=now.stepped_down,
            key_epoch=self.trust.epoch,
            models=self._seats.uses(),
        )

    def _kept(self, ruling: Ruling) -> Ruling:
        if ruling.state != ruling.before:
            self.save(ruling.state)
        return ruling

    def _perform(self, effect: Accepted, loaded: Loaded | None = None) -> Answer:
        try:
            detail = self._repertoire.perform(effect.command, loaded)
        except RefusedError as refusal:
            return _refusal(refusal, effect.received_at_ns)
        except Exception as error:  # whatever a strategy raises must not end the agent
            LOG.exception("command %s", effect.command.id, extra={"action": "command_failed"})
            return _refusal(FailedError(f"accepted, but it failed: {error!r}"), effect.received_at_ns)
        return Answer(detail=detail, received_at_ns=effect.received_at_ns, applied_at_ns=self._clock())

    def _answer(self, command_id: str, answer: Answer) -> None:
        self.state = self.state.answered(command_id, answer)
        self._report(command_id, answer)

    def _repeat(self, command_id: str, answer: Answer) -> None:
        """Answer what changed nothing: the same refusal once, the same consent now and then, whoever sends it again and again."""
        if not answer.reason_code:
            if self._repeats.take(self._clock()):
                self._report(command_id, answer)
            return
        if (command_id, answer.reason_code) not in self._refused:
            self._refused[command_id, answer.reason_code] = None
            if len(self._refused) > _KEPT_REFUSALS:
                self._refused.popitem(last=False)
            self._report(command_id, answer)

    def _refuse_forged(self, answer: Answer) -> None:
        if self._forged.take(self._clock()):
            withheld, self._forged.withheld = self._forged.withheld, 0
            detail = answer.detail + (f"; {withheld} more were not reported" if withheld else "")
            LOG.warning("refused: %s: %s", answer.reason_code, detail, extra={"action": "envelope_refused"})
            self._report("", replace(answer, detail=detail))

    @staticmethod
    def _guard(hook: Callable[[], None]) -> None:
        try:
            hook()
        except Exception:  # whatever a strategy raises must not end the agent
            LOG.exception("a hook of the strategy failed", extra={"action": "strategy_failed"})


def _refusal(error: MevError, received_at_ns: int) -> Answer:
    return Answer(error.code, error.detail, received_at_ns)
