"""Compaction of the journal: selects the messages that a replay still needs.

An agent's enrolments form runs, each ended by a revocation. Of successive enrolments with the same
key, only the first and the last are needed. A completed run is needed while a stored command was
issued to the agent or reported by it during the run.
"""

from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field

from mev.control.control_state import ControlState, unwrapped
from mev.wire.pb.control_pb2 import Command, Enrolment, Proposal, Report, Vote


@dataclass(slots=True)
class _Run:
    """Indices of an agent's needed enrolments up to a revocation.

    Those from `same_key` on have the same public key.
    """

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


def compacted(envelopes: Sequence[bytes], control_state: ControlState) -> list[bytes]:
    """Return the journal's `envelopes`, in order, that `control_state` still needs."""
    survey = _Survey(control_state)
    for index, raw in enumerate(envelopes):
        survey.see(index, raw)
    return [envelopes[index] for index in sorted(survey.needed())]


class _Survey:
    def __init__(self, control_state: ControlState) -> None:
        self._control_state = control_state
        self._kept: set[int] = set()
        self._commands: list[tuple[int, str]] = []
        self._reports: dict[tuple[str, str], int] = {}
        self._open: dict[str, _Run] = {}
        self._closed: list[_Run] = []

    def see(self, index: int, raw: bytes) -> None:
        """Add the next message."""
        match unwrapped(raw):
            case Command(id=name) if name in self._control_state.command_store.commands:
                self._kept.add(index)
                self._commands.append((index, name))
            case Proposal(id=name) | Vote(proposal_id=name) if (
                name in self._control_state.proposals.pending
            ):
                self._kept.add(index)
            case Report() as report:
                self._report(index, report)
            case Enrolment() as enrolment:
                self._enrolment(index, enrolment)

    def needed(self) -> set[int]:
        """Return the indices of the needed messages."""
        needed = self._kept | set(self._reports.values())
        for run in [*self._open.values(), *filter(self._matters, self._closed)]:
            needed.update(run.indices)
        return needed

    def _report(self, index: int, report: Report) -> None:
        run = self._open.get(report.agent_id)
        if run and report.command_id in self._control_state.command_store.commands:
            run.answered = True
            self._reports[report.agent_id, report.command_id] = index  # only the last report counts
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
        if self._control_state.fleet.revoked.get(name) == enrolment:
            self._kept.add(index)

    def _matters(self, run: _Run) -> bool:
        first, last = run.indices[0], run.indices[-1]
        meanwhile = self._commands[
            bisect(self._commands, (first, "")) : bisect(self._commands, (last, ""))
        ]
        return run.answered or any(
            run.agent_id in self._control_state.command_store.commands[name].deliveries
            for _, name in meanwhile
        )
