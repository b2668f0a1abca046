"""Processing of commands: verify, store on disk, apply, answer.

:meth:`CommandProcessor.decide` verifies and stores, and may run in a thread;
    :meth:`CommandProcessor.enact` and the other methods run in the event loop. One envelope is
    decided and enacted before the next; a step-down meanwhile is not undone by the decision. After
    a crash, the next start finds the state either before or after a command, and never accepts an
    older one.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from mev.agent.active_models import ActiveModels
from mev.agent.command_handlers import CommandHandlers
from mev.agent.command_verifier import CommandVerifier, Identity, Prepared, Transition, Wanted
from mev.agent.folder import AgentFolder
from mev.agent.level import (
    EffectiveLevel,
    Lease,
    LeaseLimits,
    Level,
    latch,
    next_change_ns,
    standing,
    without_policies,
)
from mev.agent.model_source import Loaded
from mev.agent.policy import Policies
from mev.agent.refusal import (
    CommandRefusedError,
    FailedError,
    InterruptedCommandError,
    RolledBackError,
)
from mev.agent.state import Accepted, AgentState, CommandResult
from mev.agent.strategy import Strategy
from mev.core.clock import Clock
from mev.core.errors import MevError
from mev.core.token_bucket import TokenBucket
from mev.crypto.trust import TrustStore
from mev.wire.orders import subject
from mev.wire.pb.control_pb2 import PRODUCTION, Command, Running

LOG = logging.getLogger(__name__)
_KEPT_REFUSALS = 256
Report = Callable[[str, CommandResult], None]


class CommandProcessor:
    """Processes envelopes, holds the state and calls the strategy.

    `report` receives every answer, with an empty id for envelopes that are not authenticated.
    """

    def __init__(
        self,
        identity: Identity,
        strategy: Strategy,
        handlers: CommandHandlers,
        active_models: ActiveModels,
        folder: AgentFolder,
        state: AgentState,
        trust: TrustStore,
        *,
        limits: LeaseLimits,
        clock: Clock,
        report: Report,
    ) -> None:
        self.state = state
        self.trust = trust
        self._strategy = strategy
        self._handlers = handlers
        self._active_models = active_models
        self._folder = folder
        self._limits = limits
        self._clock = clock
        self._report = report
        self._verifier = CommandVerifier(identity, handlers, limits, clock)
        self._shown: EffectiveLevel | None = None
        self._policies: dict[str, Command] | None = None
        self._forged = TokenBucket(0.1, 5, self._now_s)
        self._withheld = 0
        self._repeats = TokenBucket(1, 50, self._now_s)
        self._refused: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._saved = state
        self._stopped = ""
        self._newly_reported: set[str] = set()

    def level(self) -> Level:
        """Return the effective level now; an expired lease counts at once."""
        return self.standing().level

    def standing(self) -> EffectiveLevel:
        """Return the effective level now, with its reason."""
        state = self.state
        now_ns = self._clock()
        found = standing(state.orders, state.lease, state.latched, self._limits, now_ns)
        found = without_policies(found, self._handlers.missing_policies(state.policies(now_ns)))
        return (
            replace(found, level=Level.HALTED, stepped_down=self._stopped)
            if self._stopped
            else found
        )

    def start(self) -> None:
        """Give the strategy the active state, and answer commands accepted before a restart.

        A model swap is answered when its model is loaded again: see :meth:`absent`.
        """
        for name, one in self.state.accepted.items():
            if name.startswith("config:"):
                self._guard(partial(self._handlers.configure, one.command.config))
        self.refresh()
        for one in list(self.state.accepted.values()):
            if one.answer is None and one.swap is not None and one.swap.model_id:
                continue
            if one.answer is None and one.command.WhichOneof("body") == "action":
                self._answer(
                    one.command.id,
                    _refusal(
                        InterruptedCommandError("the agent ended meanwhile"), one.received_at_ns
                    ),
                )
            elif one.answer is None:
                self._answer(
                    one.command.id,
                    CommandResult(received_at_ns=one.received_at_ns, applied_at_ns=self._clock()),
                )
            elif not one.reported:
                self._report(one.command.id, one.answer)

    def decide(self, envelope: bytes, received_at_ns: int) -> Transition:
        """Verify `envelope` and store the new state.

        Blocks on the disk and changes nothing else.
        """
        return self._kept(self._verifier.rule(envelope, received_at_ns, self.state, self.trust))

    def decide_again(self, prepared: Prepared) -> Transition:
        """Verify a swap again after loading its model or failing to, like :meth:`decide`."""
        return self._kept(self._verifier.rule_again(prepared, self.state, self.trust))

    def holds(self, transition: Transition) -> bool:
        """Return whether `transition` is still valid.

        It is not if the agent stepped down meanwhile; decide again then.
        """
        self.refresh()
        return self.state.latched == transition.before.latched

    def enact(self, transition: Transition) -> None:
        """Apply a stored transition that :meth:`holds`, and answer."""
        self.state, self.trust = transition.state, transition.trust
        self.refresh()
        for effect in transition.effects:
            self._answer(effect.command.id, self._perform(effect, transition.loaded))
        for command_id, answer in transition.answers:
            self._repeat(command_id, answer)
        for answer in transition.forged:
            self._refuse_forged(answer)

    def absent(self) -> list[Wanted]:
        """Return the active swaps whose models are not loaded, as after a start."""
        swaps = [(one, one.swap) for one in self.state.accepted.values() if one.in_force]
        away = [
            one for one, swap in swaps if swap is not None and not self._active_models.holds(swap)
        ]
        return [
            Wanted(one.command, one.received_at_ns, answered=one.answer is not None) for one in away
        ]

    def restore(self, prepared: Prepared) -> None:
        """Activate a model accepted before a restart, and answer if that was not done."""
        command, received_at_ns = prepared.wanted.command, prepared.wanted.received_at_ns
        now = self.state.accepted.get(subject(command))
        if now is None or now.command.id != command.id:
            self.refuse(
                prepared.wanted,
                RolledBackError("something newer was accepted before its model was loaded again"),
            )
        elif isinstance(prepared.outcome, MevError):
            if now.answer is None:
                self._answer(command.id, _refusal(prepared.outcome, received_at_ns))
        else:
            answer = self._perform(now, prepared.outcome)
            if now.answer is None:
                self._answer(command.id, answer)

    def refuse(self, wanted: Wanted, error: MevError) -> None:
        """Answer a swap that is abandoned."""
        if not wanted.answered:
            self._repeat(wanted.command.id, _refusal(error, wanted.received_at_ns))

    def refresh(self) -> None:
        """Apply effects of time: expired leases, temporary levels and policies that start.

        It does not block, and may be called while an envelope is being decided.
        """
        now_ns = self._clock()
        self.state = replace(
            self.state, latched=latch(self.state.lease, self.state.latched, self._limits, now_ns)
        )
        policies = self.state.policies(now_ns)
        if policies != self._policies:
            self._policies = policies
            self._guard(
                lambda: self._strategy.on_policies(
                    Policies([one.policy for one in policies.values()])
                )
            )
        now = self.standing()
        if now != self._shown:
            self._shown = now
            LOG.info("level %s %s", now.level.name, now.stepped_down, extra={"action": "level"})
            self._guard(lambda: self._strategy.on_level(now.level, now.stepped_down))

    def pending_save(self) -> AgentState | None:
        """Return the state if it is not fully stored.

        Not for use while an envelope is being decided.
        """
        if self._newly_reported:
            self.state, self._newly_reported = self.state.reported(self._newly_reported), set()
        return self.state if self.state != self._saved else None

    def save(self, state: AgentState) -> None:
        """Store `state`; blocks on the disk."""
        self._folder.save(state)
        self._saved = state

    def note_reported(self, command_ids: set[str]) -> None:
        """Record that the brokers have the answers to these commands."""
        # The state takes up answers between two envelopes only; one may be being decided now.
        self._newly_reported |= command_ids

    def next_change_ns(self) -> int | None:
        """Return the time of the next change that time alone causes."""
        now_ns = self._clock()
        times = [one.command.policy.effective_from_ns for one in self.state.accepted.values()]
        due = next_change_ns(self.state.orders, self.state.lease, self._limits, now_ns)
        return min(
            [time for time in times if time > now_ns] + ([due] if due is not None else []),
            default=None,
        )

    def stop(self, reason: str) -> None:
        """Halt until the next start, which waits for a new lease without a step-down."""
        self.refresh()
        self.state = replace(self.state, lease=Lease(self.state.lease.version, None))
        self._stopped = reason
        self.refresh()

    def blocked_by(self) -> Sequence[str]:
        """Return the reasons why the strategy sends nothing at any level."""
        try:
            return self._strategy.blocked_by(
                has_model=bool(self._active_models.model_id(PRODUCTION))
            )
        except Exception:  # exceptions of a strategy must not end the agent
            LOG.exception(
                "the strategy cannot say whether it is blocked", extra={"action": "strategy_failed"}
            )
            return ()

    def running(self) -> Running:
        """Return the active state for reports."""
        now, state = self.standing(), self.state
        accepted = [one.command for one in state.accepted.values() if one.in_force]
        swaps = [
            one.model
            for one in accepted
            if one.WhichOneof("body") == "model" and one.model.role == PRODUCTION
        ]
        # A model accepted before a restart does not decide until it is loaded again.
        model = next((swap for swap in swaps if self._active_models.holds(swap)), None)
        return Running(
            level=now.level.name,
            ordered_level=now.ordered.name,
            policies={
                policy_id: one.version for policy_id, one in state.policies(self._clock()).items()
            },
            configs={
                one.config.config_key: one.version
                for one in accepted
                if one.WhichOneof("body") == "config"
            },
            model_id=model.model_id if model else "",
            model_version=model.version if model else "",
            model_sha256=model.sha256 if model else b"",
            lease_expires_at_ns=state.lease.expires_at_ns or 0,
            stepped_down=now.stepped_down,
            key_epoch=self.trust.epoch,
            models=self._active_models.uses(),
            blocked_by=self.blocked_by(),
            missing_policies=self._handlers.missing_policies(state.policies(self._clock())),
        )

    def _kept(self, transition: Transition) -> Transition:
        if transition.state != transition.before:
            self.save(transition.state)
        return transition

    def _perform(self, effect: Accepted, loaded: Loaded | None = None) -> CommandResult:
        try:
            detail = self._handlers.perform(effect.command, loaded)
        except CommandRefusedError as refusal:
            return _refusal(refusal, effect.received_at_ns)
        except Exception as error:  # exceptions of a strategy must not end the agent
            LOG.exception("command %s", effect.command.id, extra={"action": "command_failed"})
            return _refusal(
                FailedError(f"accepted, but it failed: {error!r}"), effect.received_at_ns
            )
        return CommandResult(
            detail=detail, received_at_ns=effect.received_at_ns, applied_at_ns=self._clock()
        )

    def _answer(self, command_id: str, answer: CommandResult) -> None:
        self.state = self.state.answered(command_id, answer)
        self._report(command_id, answer)

    def _repeat(self, command_id: str, answer: CommandResult) -> None:
        """Repeat an answer with a limit: refusals once, confirmations at a bounded rate."""
        if not answer.reason_code:
            if not self._repeats.take():
                self._report(command_id, answer)
            return
        if (command_id, answer.reason_code) not in self._refused:
            self._refused[command_id, answer.reason_code] = None
            if len(self._refused) > _KEPT_REFUSALS:
                self._refused.popitem(last=False)
            self._report(command_id, answer)

    def _refuse_forged(self, answer: CommandResult) -> None:
        if self._forged.take():
            self._withheld += 1
            return
        withheld, self._withheld = self._withheld, 0
        detail = answer.detail + (f"; {withheld} more were not reported" if withheld else "")
        LOG.warning(
            "refused: %s: %s", answer.reason_code, detail, extra={"action": "envelope_refused"}
        )
        self._report("", replace(answer, detail=detail))

    def _now_s(self) -> float:
        return self._clock() / 1e9

    @staticmethod
    def _guard(hook: Callable[[], None]) -> None:
        try:
            hook()
        except Exception:  # exceptions of a strategy must not end the agent
            LOG.exception("a hook of the strategy failed", extra={"action": "strategy_failed"})


def _refusal(error: MevError, received_at_ns: int) -> CommandResult:
    return CommandResult(error.code, error.detail, received_at_ns)
