"""Verification of the control plane's messages, in a fixed order with one error code per check.

Signature, target, version, expiry, digest, policy. Verification has no effects: the transition
contains the new state, the effects and the answers, and the caller stores the state first. A model
swap is verified twice: it is accepted only after its model is loaded.
"""

from dataclasses import dataclass, field, replace
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from mev.agent.command_handlers import CommandHandlers
from mev.agent.level import (
    EVERYONE,
    Lease,
    LeaseLimits,
    Level,
    ScopeLevels,
    latch,
    standing,
    without_policies,
)
from mev.agent.model_source import Loaded
from mev.agent.refusal import (
    BadParamsError,
    ExpiredError,
    RolledBackError,
    StaleSnapshotError,
    UnknownEpochError,
    WrongTargetError,
)
from mev.agent.state import Accepted, AgentState, CommandResult
from mev.core.clock import Clock
from mev.core.errors import MevError
from mev.crypto.envelope import parse, payload_type
from mev.crypto.errors import EnvelopeError, OldKeySetError, WrongPayloadTypeError
from mev.crypto.trust import COMMAND, TrustStore
from mev.wire.orders import is_for, scopes, subject, version_key
from mev.wire.pb.control_pb2 import Command, Enrolment, Proposal, Snapshot, Target, Vote
from mev.wire.pb.control_pb2 import Lease as SignedLease
from mev.wire.pb.envelope_pb2 import Envelope, KeySet

M = TypeVar("M", bound=Message)
SECOND_NS = 1_000_000_000
# The control plane's own records are on the same topic.
_NOT_FOR_AGENTS = frozenset(payload_type(kind) for kind in (Enrolment, Proposal, Vote))


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Id and module of an agent."""

    agent_id: str
    module: str


@dataclass(frozen=True, slots=True)
class Wanted:
    """A swap whose model must be loaded.

    With an `envelope` it is verified again after loading; without one it was accepted before a
    restart.
    """

    command: Command
    received_at_ns: int
    envelope: Envelope | None = None
    in_snapshot: bool = False
    answered: bool = False

    @property
    def accepted(self) -> bool:
        """Return whether it was accepted before its model was loaded in this process."""
        return self.envelope is None


@dataclass(frozen=True, slots=True)
class Prepared:
    """The result of loading a wanted model, with the key set of `epoch`."""

    wanted: Wanted
    outcome: Loaded | MevError
    epoch: int


@dataclass(slots=True)
class Transition:
    """The result of an envelope, given the state `before`.

    `answers` are answers to authenticated commands, by command id. `forged` are refusals of
    messages without a valid signature, which anyone may send. `wanted` are swaps to load, the
    newest of each role; `loaded` is the model of an effect.
    """

    before: AgentState
    state: AgentState
    trust: TrustStore
    effects: list[Accepted] = field(default_factory=list)
    answers: list[tuple[str, CommandResult]] = field(default_factory=list)
    forged: list[CommandResult] = field(default_factory=list)
    wanted: dict[str, Wanted] = field(default_factory=dict)
    loaded: Loaded | None = None


class CommandVerifier:
    """Verifies envelopes."""

    def __init__(
        self, identity: Identity, handlers: CommandHandlers, limits: LeaseLimits, clock: Clock
    ) -> None:
        self._identity = identity
        self._handlers = handlers
        self._limits = limits
        self._clock = clock

    def rule(
        self, envelope: bytes, received_at_ns: int, state: AgentState, trust: TrustStore
    ) -> Transition:
        """Return the transition for `envelope`, given the state and the active keys."""
        case = self._case(received_at_ns, state, trust)
        try:
            case.envelope(parse(envelope))
        except OldKeySetError:
            pass  # obsolete, and not a sign of an error
        except (EnvelopeError, StaleSnapshotError) as error:
            case.transition.forged.append(
                CommandResult(error.code, f"{error.detail}{_claim(envelope)}", received_at_ns)
            )
        return case.transition

    def rule_again(self, prepared: Prepared, state: AgentState, trust: TrustStore) -> Transition:
        """Return the transition for a swap after loading its model or failing to."""
        case = self._case(prepared.wanted.received_at_ns, state, trust)
        case.prepared(prepared)
        return case.transition

    def _case(self, received_at_ns: int, state: AgentState, trust: TrustStore) -> "_Case":
        now_ns = self._clock()
        # A lease that expired earlier has already caused a step-down, whatever this message says.
        transition = Transition(
            state,
            replace(state, latched=latch(state.lease, state.latched, self._limits, now_ns)),
            trust,
        )
        return _Case(
            self._identity, self._handlers, self._limits, transition, received_at_ns, now_ns
        )


@dataclass(slots=True)
class _Case:
    """Verification of one envelope."""

    identity: Identity
    handlers: CommandHandlers
    limits: LeaseLimits
    transition: Transition
    received_at_ns: int
    now_ns: int

    def envelope(self, envelope: Envelope) -> None:
        if envelope.payload_type == payload_type(Command):
            self.command(self._open(envelope, Command), envelope, in_snapshot=False)
        elif envelope.payload_type == payload_type(SignedLease):
            self.lease(self._open(envelope, SignedLease))
        elif envelope.payload_type == payload_type(Snapshot):
            self.snapshot(self._open(envelope, Snapshot))
        elif envelope.payload_type == payload_type(KeySet):
            self.key_set(envelope)
        elif envelope.payload_type not in _NOT_FOR_AGENTS:
            raise WrongPayloadTypeError(
                f"{envelope.payload_type[:80]!r} has no place on the control topic"
            )

    def key_set(self, envelope: Envelope) -> None:
        successor = TrustStore(self.transition.trust.key_set)
        successor.rotate(envelope, self.now_ns)
        self.transition.trust = successor
        self.transition.state = replace(self.transition.state, key_set=envelope.SerializeToString())

    def lease(self, lease: SignedLease) -> None:
        state, version = self.transition.state, version_key(lease.version)
        # A version of a future epoch could never be replaced after a key rotation.
        if (
            not self._is_mine(lease.target)
            or version <= state.lease.version
            or lease.version.epoch > self.transition.trust.epoch
        ):
            return
        longest_ns = self.now_ns + round(self.limits.max_lease_s * SECOND_NS)
        renewed = Lease(version, min(lease.expires_at_ns, longest_ns))
        self.transition.state = replace(
            state, lease=renewed, latched=latch(renewed, state.latched, self.limits, self.now_ns)
        )

    def snapshot(self, snapshot: Snapshot) -> None:
        age_s = (self.now_ns - snapshot.issued_at_ns) / SECOND_NS
        if age_s > self.limits.snapshot_max_age_s:
            raise StaleSnapshotError(
                f"the snapshot is {age_s:.0f} s old; {self.limits.snapshot_max_age_s:g} are allowed"
            )
        if (
            snapshot.version.epoch > self.transition.trust.epoch
            or version_key(snapshot.version) < self.transition.state.snapshot
        ):
            raise StaleSnapshotError(
                f"snapshot version {version_key(snapshot.version)}; "
                f"{self.transition.state.snapshot} was taken before"
            )
        self.transition.state = replace(
            self.transition.state, snapshot=version_key(snapshot.version)
        )
        commands = []
        for envelope in snapshot.commands:
            try:
                commands.append((self._open(envelope, Command), envelope))
            except EnvelopeError as error:
                self.transition.forged.append(
                    CommandResult(error.code, f"in a snapshot: {error.detail}", self.received_at_ns)
                )
        for command, envelope in sorted(commands, key=lambda one: version_key(one[0].version)):
            self.command(command, envelope, in_snapshot=True)

    def command(self, command: Command, envelope: Envelope, *, in_snapshot: bool) -> None:
        try:
            if self._is_meant(command) and (
                newer := self._newer_objects(command, in_snapshot=in_snapshot)
            ):
                if not in_snapshot:
                    self._check_expiry(command)
                self._check(command)
                if command.WhichOneof("body") == "model" and command.model.model_id:
                    self.transition.wanted[subject(command)] = Wanted(
                        command, self.received_at_ns, envelope, in_snapshot
                    )
                else:
                    self._accept(command, newer)
        except MevError as refusal:
            self._refuse(command, refusal)

    def prepared(self, prepared: Prepared) -> None:
        """Verify a swap after loading.

        Its expiry was checked when it arrived. The key set may have changed since.
        """
        wanted = prepared.wanted
        assert wanted.envelope is not None  # noqa: S101
        try:
            command = self._open(wanted.envelope, Command)
            if newer := self._newer_objects(command, in_snapshot=wanted.in_snapshot):
                if isinstance(prepared.outcome, MevError):
                    raise prepared.outcome
                self._check(command)
                self.transition.loaded = prepared.outcome
                self._accept(command, newer)
        except MevError as refusal:
            self._refuse(wanted.command, refusal)

    def _refuse(self, command: Command, refusal: MevError) -> None:
        self.transition.answers.append(
            (command.id, CommandResult(refusal.code, refusal.detail, self.received_at_ns))
        )

    def _open(self, envelope: Envelope, message_type: type[M]) -> M:
        return self.transition.trust.open(envelope, message_type, COMMAND, self.now_ns)

    def _is_mine(self, target: Target) -> bool:
        return is_for(target, self.identity.agent_id, self.identity.module)

    def _is_meant(self, command: Command) -> bool:
        if not self._is_mine(command.target):
            return False
        module = command.action.module
        if command.WhichOneof("body") != "action" or module == self.identity.module:
            return True
        if self.identity.agent_id in command.target.agent_ids:
            raise WrongTargetError(
                f"for module {module!r}; {self.identity.agent_id} is {self.identity.module!r}"
            )
        return False

    def _newer_objects(self, command: Command, *, in_snapshot: bool) -> list[str]:
        """Return the objects for which `command` is newer.

        A known command is answered again, or ignored in a snapshot.
        """
        version = version_key(command.version)
        if command.version.epoch > self.transition.trust.epoch:
            raise UnknownEpochError(
                f"epoch {command.version.epoch}; the key set here is of epoch "
                f"{self.transition.trust.epoch}"
            )
        objects = self._objects(command)
        known = {
            name: one
            for name in objects
            if (one := self.transition.state.accepted.get(name)) is not None
        }
        newer = [name for name in objects if name not in known or known[name].version < version]
        if newer:
            return newer
        same = next(
            (
                one
                for one in known.values()
                if one.command.id == command.id and one.version == version
            ),
            None,
        )
        if same is not None:
            # Without an answer it is about to be applied, and is answered then.
            if same.answer is not None and not (in_snapshot and same.reported):
                self.transition.answers.append((command.id, same.answer))
        elif not in_snapshot:
            newest = max(one.version for one in known.values())
            raise RolledBackError(
                f"version {version} of {', '.join(known)}; {newest} was accepted before"
            )
        return []

    def _objects(self, command: Command) -> list[str]:
        about = subject(command)
        if about != "level":
            return [about]
        mine = {"all", f"module:{self.identity.module}", f"agent:{self.identity.agent_id}"}
        return [f"level:{scope}" for scope in scopes(command.target) if scope in mine]

    def _check_expiry(self, command: Command) -> None:
        if not command.expires_at_ns:
            raise ExpiredError("the command has no expiry")
        late_s = (self.now_ns - command.expires_at_ns) / SECOND_NS
        if late_s > self.limits.skew_s:
            raise ExpiredError(f"expired {late_s:.1f} s ago; check the clocks of both sides")

    def _check(self, command: Command) -> None:
        state = self.transition.state
        now = standing(state.orders, state.lease, state.latched, self.limits, self.now_ns)
        missing = self.handlers.missing_policies(state.policies(self.now_ns))
        self.handlers.check(command, without_policies(now, missing).level)

    def _accept(self, command: Command, objects: list[str]) -> None:
        state = self.transition.state
        if command.WhichOneof("body") == "level":
            state = _with_level(command, objects, state, self.now_ns)
        elif command.WhichOneof("body") == "policy":
            state = _with_policy(command, state, self.now_ns)
        for name in objects:
            self.transition.wanted.pop(name, None)  # older, in the same snapshot
        accepted = Accepted(command, self.received_at_ns)
        self.transition.state = state.accept(dict.fromkeys(objects, accepted))
        self.transition.effects.append(accepted)


def _with_level(command: Command, objects: list[str], state: AgentState, now_ns: int) -> AgentState:
    until_ns = command.level.until_ns
    try:
        level = Level(command.level.level)
    except ValueError:
        raise BadParamsError(f"there is no level {command.level.level}") from None
    orders = dict(state.orders)
    for name in objects:
        before = orders.get(name, ScopeLevels())
        orders[name] = (
            _lowered(name, before, level, until_ns, now_ns) if until_ns else ScopeLevels(level)
        )
    latched = state.latched
    # Only an approved command issued after the step-down raises the level again.
    approved = bool(command.issuer.approvers) and not until_ns
    if (
        latched is not None
        and approved
        and level > latched.level
        and command.issued_at_ns >= latched.since_ns
    ):
        latched = None
    return replace(state, orders=orders, latched=latched)


def _lowered(
    name: str, before: ScopeLevels, level: Level, until_ns: int, now_ns: int
) -> ScopeLevels:
    current = before.level(now_ns)
    if current is None:
        current = Level.HALTED if name == EVERYONE else Level.ACTIVE
    if level > current:
        raise BadParamsError(
            f"{level.name} is above {current.name}: only what lowers the level may end by itself"
        )
    return before.lowered(level, until_ns)


def _with_policy(command: Command, state: AgentState, now_ns: int) -> AgentState:
    policy = command.policy
    before = dict(state.policies_before)
    current = state.policies(now_ns).get(policy.policy_id)
    if policy.effective_from_ns > now_ns and current is not None:
        before[policy.policy_id] = current
    else:
        before.pop(policy.policy_id, None)
    return replace(state, policies_before=before)


def _claim(envelope: bytes) -> str:
    """Return the command id that a refused envelope claims, as a hint for people."""
    try:
        claimed = Command.FromString(Envelope.FromString(envelope).payload).id
    except DecodeError:
        return ""
    return f" (claims to be command {claimed[:64]!r})" if claimed else ""
