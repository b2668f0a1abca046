"""What of the journal still matters: whatever a replay needs to come to the same book.

An agent's enrolments follow one another in runs that end with a revocation. Of those in a run with the same key the first and the last say
everything. A run that is over matters while a kept command was issued to the agent, or answered by it, during it.
"""

from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field

from mev.control.book import Book, unwrapped
from mev.wire.pb.control_pb2 import Command, Enrolment, Proposal, Report, Vote


@dataclass(slots=True)
class _Run:
    """Indices of what matters of an agent's enrolments up to a revocation; those from `same_key` on are with one key."""

    agent_id: str
    indices: list[int] = field(default_factory=list)
    public_key: bytes = b""
    same_key: int = 0
    answered: bool = False

    def add(self, index: int, public_key: bytes) -> None:
        if public_key != self.public_key:
            self.public_key, self.same_key = public_key, len(self.indices)
        del self.indices[self.same_key + 1 :]
        self.indices.append(index)


def compacted(envelopes: Sequence[bytes], book: Book) -> list[bytes]:
    """Return those of the journal's `envelopes`, in order, that `book` still needs."""
    survey = _Survey(book)
    for index, raw in enumerate(envelopes):
        survey.see(index, raw)
    return [envelopes[index] for index in sorted(survey.needed())]


class _Survey:
    def __init__(self, book: Book) -> None:
        self._book = book
        self._kept: set[int] = set()
        self._commands: list[tuple[int, str]] = []
        self._reports: dict[tuple[str, str], int] = {}
        self._open: dict[str, _Run] = {}
        self._closed: list[_Run] = []

    def see(self, index: int, raw: bytes) -> None:
        """Take the next message."""
        match unwrapped(raw):
            case Command(id=name) if name in self._book.ledger.commands:
                self._kept.add(index)
                self._commands.append((index, name))
            case Proposal(id=name) | Vote(proposal_id=name) if name in self._book.proposals.pending:
                self._kept.add(index)
            case Report() as report:
                self._report(index, report)
            case Enrolment() as enrolment:
                self._enrolment(index, enrolment)

    def needed(self) -> set[int]:
        """Return the indices of what matters."""
        needed = self._kept | set(self._reports.values())
        for run in [*self._open.values(), *filter(self._matters, self._closed)]:
            needed.update(run.indices)
        return needed

    def _report(self, index: int, report: Report) -> None:
        run = self._open.get(report.agent_id)
        if run and report.command_id in self._book.ledger.commands:
            run.answered = True
            self._reports[report.agent_id, report.command_id] = index  # the last answer is the one that counts
        elif run:
            self._reports[report.agent_id, ""] = index

    def _enrolment(self, index: int, enrolment: Enrolment) -> None:
        name = enrolment.agent_id
        if not enrolment.revoked:
            self._open.setdefault(name, _Run(name)).add(index, enrolment.public_key)
            return
        if run := self._open.pop(name, None):
            run.indices.append(index)
            self._closed.append(run)
            self._reports.pop((name, ""), None)
        if self._book.fleet.revoked.get(name) == enrolment:
            self._kept.add(index)

    def _matters(self, run: _Run) -> bool:
        first, last = run.indices[0], run.indices[-1]
        meanwhile = self._commands[bisect(self._commands, (first, "")) : bisect(self._commands, (last, ""))]
        return run.answered or any(run.agent_id in self._book.ledger.commands[name].deliveries for _, name in meanwhile)
