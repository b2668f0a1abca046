"""The book: the state that follows from the signed messages, one applied after the other, in whatever order replicas see them."""

import logging
from collections import OrderedDict
from collections.abc import Callable

from google.protobuf.message import DecodeError, Message

from mev.control.fleet import Fleet
from mev.control.keys import Keys
from mev.control.ledger import Issued, Ledger
from mev.control.proposals import Proposals
from mev.crypto.envelope import payload_type
from mev.crypto.errors import EnvelopeError
from mev.crypto.trust import COMMAND
from mev.wire.pb.control_pb2 import ACK, NACK, Command, Enrolment, Lease, Proposal, Report, Snapshot, Vote
from mev.wire.pb.envelope_pb2 import Envelope, KeySet

LOG = logging.getLogger(__name__)
_REPORT, _KEY_SET = payload_type(Report), payload_type(KeySet)
_VERSIONED: dict[str, type[Lease | Snapshot]] = {payload_type(Lease): Lease, payload_type(Snapshot): Snapshot}
_MAX_KEY_SETS = 100
_MAX_EARLY = 20_000
_WRITTEN: dict[str, type[Message]] = {payload_type(kind): kind for kind in (Command, Enrolment, Proposal, Vote)}


class Book:
    """Fleet, ledger and proposals. `on_command`, where it is set, hears every command when it is first seen, and `on_read` every command
    that is read from the topic, and whether it was new.

    Of an agent that has nothing to answer a sign of life is kept every `keep_sign_of_life_s`: by it a restart knows how long it is silent.
    """

    def __init__(self, keys: Keys, *, keep_sign_of_life_s: float) -> None:
        self.keys = keys
        self.keep_sign_of_life_ns = round(keep_sign_of_life_s * 1e9)
        self.on_command: Callable[[Issued], None] | None = None
        self.on_read: Callable[[Command, bool], None] | None = None
        self.on_early_answer: Callable[[bytes], None] | None = None
        self._early: OrderedDict[str, list[tuple[Report, int, bytes]]] = OrderedDict()
        """Answers that came before the command did: they take another way, and an agent may be quicker than a replica."""
        self._early_count = 0
        self.key_sets: list[bytes] = []  # that were announced, and that our signing key vouches for
        self.fleet = Fleet()
        self.ledger = Ledger()
        self.proposals = Proposals()

    def apply(self, raw: bytes, now_ns: int, late_at_ns: int = 0) -> bool:
        """Apply a message from the topics; say whether it is new and has to be kept. What cannot be trusted is logged and left out.

        `late_at_ns` is when it came to the topic, where that was before this replica began to listen.
        """
        try:
            envelope = Envelope.FromString(raw)
            kind = envelope.payload_type
            if kind == _REPORT:
                return self._report(envelope, now_ns, late_at_ns or now_ns, raw, is_late=bool(late_at_ns))
            if kind == _KEY_SET:
                self._key_set(raw, now_ns)
            elif kind in _VERSIONED:
                self.ledger.saw(self.keys.trust.open(envelope, _VERSIONED[kind], COMMAND, now_ns).version)
            elif kind in _WRITTEN:
                message = self.keys.trust.open(envelope, _WRITTEN[kind], COMMAND, now_ns)
                is_new = not _is_expired(message, now_ns) and self._written(message, raw)
                if isinstance(message, Command) and self.on_read:
                    self.on_read(message, is_new)
                return is_new
        except (EnvelopeError, DecodeError) as error:
            LOG.warning("a message on the control topics is refused: %s", error, extra={"action": "control_refused"})
        return False

    def replay(self, raw: bytes) -> None:
        """Apply a message from the journal: it was checked when it was written, perhaps under a key that has been replaced since."""
        message = unwrapped(raw)
        if not isinstance(message, Report):
            self._written(message, raw)
            return
        try:
            self._report(Envelope.FromString(raw), message.reported_at_ns, message.reported_at_ns, raw)
        except EnvelopeError as error:
            LOG.warning("a report in the journal is of another key: %s", error, extra={"action": "control_refused"})

    def take(self, command: Command, raw: bytes) -> Issued:
        """Take in a command of our own, or one that was checked; one that is known is returned as it is."""
        is_new = command.id not in self.ledger.commands
        issued = self.ledger.add(command, raw, [agent.id for agent in self.fleet.meant(command.target)])
        if is_new and self.on_command:
            self.on_command(issued)
        early_answers = self._early.pop(command.id, [])
        self._early_count -= len(early_answers)
        for report, arrived_at_ns, early in early_answers:
            if self.ledger.answer(report, arrived_at_ns) and self.on_early_answer:
                self.on_early_answer(early)
        return issued

    def _written(self, message: Message, raw: bytes) -> bool:
        match message:
            case Command():
                is_new = message.id not in self.ledger.commands
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

    def _report(self, envelope: Envelope, now_ns: int, arrived_at_ns: int, raw: bytes, *, is_late: bool = False) -> bool:
        if is_late and not Report.FromString(envelope.payload).command_id:
            return False  # an old sign of life says nothing
        opened = self.fleet.open_report(envelope, now_ns)
        if opened is None:
            return False
        agent, report = opened
        self.fleet.note(agent, report, arrived_at_ns)
        if report.result in {ACK, NACK} and report.command_id and report.command_id not in self.ledger.commands:
            self._remember(report, arrived_at_ns, raw)
        is_due = not report.command_id and arrived_at_ns - agent.kept_ns >= self.keep_sign_of_life_ns
        is_kept = self.ledger.answer(report, arrived_at_ns) or is_due
        if is_kept:
            agent.kept_ns = arrived_at_ns
        return is_kept

    def _remember(self, report: Report, arrived_at_ns: int, raw: bytes) -> None:
        self._early.setdefault(report.command_id, []).append((report, arrived_at_ns, raw))
        self._early_count += 1
        while self._early_count > _MAX_EARLY:
            self._early_count -= len(self._early.popitem(last=False)[1])


def unwrapped(raw: bytes) -> Message:
    """Return the message in an envelope of the journal."""
    envelope = Envelope.FromString(raw)
    kind: type[Message] = Report if envelope.payload_type == _REPORT else _WRITTEN[envelope.payload_type]
    return kind.FromString(envelope.payload)


def _is_expired(message: Message, now_ns: int) -> bool:
    return isinstance(message, Proposal) and now_ns >= message.expires_at_ns
