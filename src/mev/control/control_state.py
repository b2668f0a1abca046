"""The control state: the result of applying all signed messages.

It is the same for any order in which replicas receive them.
"""

import logging
from collections.abc import Callable, Iterable, Sequence

from google.protobuf.message import DecodeError, Message
from prometheus_client import Counter

from mev.control.command_store import CommandRecord, CommandStore
from mev.control.early_answers import EarlyAnswer, EarlyAnswers
from mev.control.fleet import Fleet
from mev.control.keys import Keys
from mev.control.metrics import observe_answer
from mev.control.proposals import Proposals
from mev.crypto.envelope import parse, parse_message, payload_type
from mev.crypto.errors import (
    EnvelopeError,
    MalformedEnvelopeError,
    UnknownKeyError,
    WrongPayloadTypeError,
)
from mev.crypto.trust import COMMAND, TrustStore
from mev.wire.orders import scopes, version_key
from mev.wire.pb.control_pb2 import (
    ACK,
    NACK,
    Command,
    Enrolment,
    Lease,
    Level,
    ModelRole,
    Proposal,
    Report,
    Result,
    Snapshot,
    Vote,
)
from mev.wire.pb.envelope_pb2 import Envelope, KeySet

LOG = logging.getLogger(__name__)
REFUSED = Counter(
    "mev_control_messages_refused_total",
    "Messages on the control and report topics that were refused.",
)
_REPORT, _KEY_SET = payload_type(Report), payload_type(KeySet)
_VERSIONED: dict[str, type[Lease | Snapshot]] = {
    payload_type(Lease): Lease,
    payload_type(Snapshot): Snapshot,
}
_MAX_KEY_SETS = 100
MAX_REPORT_BYTES = 256 << 10
"""Agents may sign anything, and the event loop parses all of it."""
_MAX_STORED_REPORT_BYTES = 32 << 10
"""Larger reports take effect and are not stored: what is signed cannot be shortened."""
_MAX_STORED_REFUSAL_BYTES = 4 << 10
_WRITTEN: dict[str, type[Message]] = {
    payload_type(kind): kind for kind in (Command, Enrolment, Proposal, Vote)
}
_MAX_UNDER_WAY = 1000


class ControlState:
    """State of fleet, commands and proposals.

    `on_command` is called with every new command, `on_read` with every command read from the topic
    and whether it is new. For an agent without results to report, one status report is stored every
    `keep_sign_of_life_s`, so that a restart knows how long the agent has been silent.
    """

    def __init__(self, keys: Keys, *, keep_sign_of_life_s: float) -> None:
        self.keys = keys
        self.keep_sign_of_life_ns = round(keep_sign_of_life_s * 1e9)
        self.on_command: Callable[[CommandRecord], None] | None = None
        self.on_read: Callable[[Command, bool], None] | None = None
        self.on_early_answer: Callable[[bytes], None] | None = None
        self.early = EarlyAnswers()
        self.key_sets: list[bytes] = []  # announced ones that our signing key has signed
        self.fleet = Fleet()
        self.command_store = CommandStore(self.fleet.module_of)
        self.proposals = Proposals()

    def apply(self, raw: bytes, now_ns: int, late_at_ns: int = 0) -> bool:
        """Apply a message from a topic; return whether it is new and must be stored.

        Messages that cannot be trusted are logged and ignored. `late_at_ns` is the time in the
        topic, if that was before this replica started to read.
        """
        try:
            envelope = Envelope.FromString(raw)
            kind = envelope.payload_type
            if kind == _REPORT:
                return self._report(
                    envelope, now_ns, late_at_ns or now_ns, raw, is_late=bool(late_at_ns)
                )
            if kind == _KEY_SET:
                self._key_set(raw, now_ns)
            elif kind in _VERSIONED:
                self.command_store.saw(
                    self.keys.trust.open(envelope, _VERSIONED[kind], COMMAND, now_ns).version
                )
            elif kind in _WRITTEN:
                message = self.keys.trust.open(envelope, _WRITTEN[kind], COMMAND, now_ns)
                is_new = not _is_expired(message, now_ns) and self._written(message, raw)
                if isinstance(message, Command) and self.on_read:
                    self.on_read(message, is_new)
                return is_new
        except (EnvelopeError, DecodeError) as error:
            REFUSED.inc()
            LOG.warning(
                "a message on the control topics is refused: %s",
                error,
                extra={"action": "control_refused"},
            )
        return False

    def replay(self, raw: bytes, now_ns: int, trusted: Sequence[TrustStore]) -> None:
        """Apply a message from the journal.

        One of the `trusted` key sets must have signed it, or for a report the agent's key. A
        report's arrival is its own time, at most now: an agent's clock must not make it appear
        online after a restart.

        :raises EnvelopeError: if the message cannot be trusted; it is not applied.
        """
        envelope = parse(raw)
        if envelope.payload_type == _REPORT:
            report = parse_message(Report, envelope.payload)
            arrived_at_ns = min(report.reported_at_ns, now_ns)
            self._report(envelope, arrived_at_ns, arrived_at_ns, raw, is_replay=True)
        elif (kind := _WRITTEN.get(envelope.payload_type)) is not None:
            self._written(_open_stored(envelope, kind, trusted), raw)
        else:
            raise WrongPayloadTypeError(f"{envelope.payload_type[:64]!r} is not kept in a journal")

    def take(self, command: Command, raw: bytes) -> CommandRecord:
        """Add our own or a checked command, and return its record; a known one is unchanged."""
        is_new = command.id not in self.command_store.commands
        issued = self.command_store.add(
            command, raw, [agent.id for agent in self.fleet.meant(command.target)]
        )
        if is_new and self.on_command:
            self.on_command(issued)
        for early in self.early.take(command.id):
            is_new = self.command_store.answer(early.report, early.arrived_at_ns)
            if is_new and _is_storable(early.report, early.envelope) and self.on_early_answer:
                self.on_early_answer(early.envelope)
        return issued

    def _written(self, message: Message, raw: bytes) -> bool:
        match message:
            case Command():
                is_new = message.id not in self.command_store.commands
                self.take(message, raw)
                return is_new
            case Enrolment():
                return self.fleet.enrol(message)
            case Proposal():
                is_new = message.id not in self.proposals.pending
                self.proposals.add(message)
                return is_new
            case Vote():
                return self.proposals.vote(message)
            case _:
                return False

    def _key_set(self, raw: bytes, now_ns: int) -> None:
        key_set = KeySet.FromString(Envelope.FromString(raw).payload)
        if len(self.key_sets) < _MAX_KEY_SETS and self.keys.vouches(raw, now_ns):
            self.key_sets.append(raw)
        if key_set.epoch > self.keys.trust.epoch:
            self.keys.adopt(raw, now_ns)

    def _report(
        self,
        envelope: Envelope,
        now_ns: int,
        arrived_at_ns: int,
        raw: bytes,
        *,
        is_late: bool = False,
        is_replay: bool = False,
    ) -> bool:
        if len(raw) > MAX_REPORT_BYTES:
            raise MalformedEnvelopeError(
                f"a report of {len(raw)} bytes; {MAX_REPORT_BYTES} are allowed"
            )
        if is_late and not Report.FromString(envelope.payload).command_id:
            return False  # an old status report is not used
        opened = self.fleet.open_report(envelope, now_ns)
        if opened is None:
            return False
        agent, report = opened
        if unknown := _unknown_value(report):
            raise MalformedEnvelopeError(
                f"a report of agent {agent.id!r} has {unknown}, which this version does not know"
            )
        self.fleet.note(agent, report, arrived_at_ns)
        if (
            report.result in {ACK, NACK}
            and report.command_id
            and report.command_id not in self.command_store.commands
        ):
            self.early.add(EarlyAnswer(report, arrived_at_ns, raw))
        is_due = (
            not report.command_id and arrived_at_ns - agent.kept_ns >= self.keep_sign_of_life_ns
        )
        is_answer = self.command_store.answer(report, arrived_at_ns)
        if is_answer and not (is_late or is_replay):
            observe_answer(
                self.command_store.commands[report.command_id], report.result, arrived_at_ns
            )
        is_kept = is_answer or is_due
        if is_kept:
            agent.kept_ns = arrived_at_ns
        return is_kept and _is_storable(report, raw)


def unwrapped(raw: bytes) -> Message:
    """Return the message in an envelope of the journal."""
    envelope = Envelope.FromString(raw)
    kind: type[Message] = (
        Report if envelope.payload_type == _REPORT else _WRITTEN[envelope.payload_type]
    )
    return kind.FromString(envelope.payload)


def is_report(raw: bytes) -> bool:
    """Return whether an envelope of the topics holds an agent's report."""
    return Envelope.FromString(raw).payload_type == _REPORT


def _open_stored(envelope: Envelope, kind: type[Message], trusted: Sequence[TrustStore]) -> Message:
    """Return the message in `envelope`, signed under one of the key sets, newest first."""
    refusal: EnvelopeError = UnknownKeyError("no key set is trusted")
    for trust in trusted:
        try:
            message = trust.open(envelope, kind, COMMAND, 0)
        except EnvelopeError as error:
            refusal = error
            continue
        # A replaced key must not supersede what was ordered under its successors.
        if isinstance(message, Command) and message.version.epoch > trust.epoch:
            refusal = UnknownKeyError(
                f"command {message.id[:64]!r} of epoch {message.version.epoch} is signed with a "
                f"key of epoch {trust.epoch}"
            )
            continue
        return message
    raise refusal


def _is_storable(report: Report, raw: bytes) -> bool:
    is_refusal = report.result == NACK
    return len(raw) <= (_MAX_STORED_REFUSAL_BYTES if is_refusal else _MAX_STORED_REPORT_BYTES)


def _unknown_value(report: Report) -> str:
    """Return the field and number of an unknown enum value in `report`, or an empty string.

    Protobuf accepts every number in an enum field, and code that names the value fails.
    """
    running = report.running
    found = [
        ("result", Result.DESCRIPTOR, report.result),
        ("running.level", Level.DESCRIPTOR, running.level),
        ("running.ordered_level", Level.DESCRIPTOR, running.ordered_level),
        *(("running.models.role", ModelRole.DESCRIPTOR, use.role) for use in running.models),
    ]
    for name, enum, number in found:
        if number not in enum.values_by_number:
            return f"{name} {number}"
    return ""


def _is_expired(message: Message, now_ns: int) -> bool:
    return isinstance(message, Proposal) and now_ns >= message.expires_at_ns


class LevelConflicts:
    """Our own levels that are not read back yet, with other replicas' levels read meanwhile."""

    def __init__(self) -> None:
        self._under_way: dict[str, list[Command]] = {}

    def begin(self, command: Command) -> None:
        """Record a level that is about to be published."""
        if command.WhichOneof("body") == "level" and len(self._under_way) < _MAX_UNDER_WAY:
            self._under_way[command.id] = []

    def read(self, command: Command, *, is_new: bool) -> Command | None:
        """Process a level read from the topic; return the level to issue again, or None."""
        rivals = self._under_way.pop(command.id, None)
        if rivals is not None:
            return undone(command, rivals)
        if is_new:
            for others in self._under_way.values():
                others.append(command)
        return None


def undone(command: Command, rivals: Iterable[Command]) -> Command | None:
    """Return the lowest of concurrent levels for one scope, or None if agents have it already.

    Agents have the one with the newest version.
    """
    ours = set(scopes(command.target))
    contenders = [command, *(rival for rival in rivals if ours.intersection(scopes(rival.target)))]
    lowest = min(contenders, key=lambda one: one.level.level)
    held = max(contenders, key=lambda one: version_key(one.version))
    return lowest if lowest.level.level < held.level.level else None
