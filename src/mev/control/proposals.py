"""Commands that wait for more people: raising what agents may do is nobody's decision alone."""

from dataclasses import dataclass, field

from mev.control.errors import SamePersonError, UnknownProposalError
from mev.wire.pb.control_pb2 import Command, Proposal, Vote


@dataclass(slots=True)
class Pending:
    """A proposal and what people said to it; whoever proposed it has approved it."""

    proposal: Proposal
    approvers: list[str] = field(default_factory=list)
    rejected_by: str = ""
    command_id: str = ""

    def state(self, now_ns: int) -> str:
        """Return ``issued``, ``rejected``, ``expired`` or ``pending``."""
        if self.command_id:
            return "issued"
        if self.rejected_by:
            return "rejected"
        return "expired" if now_ns >= self.proposal.expires_at_ns else "pending"


class Proposals:
    """Every proposal by id, oldest first."""

    def __init__(self) -> None:
        self.pending: dict[str, Pending] = {}

    def add(self, proposal: Proposal) -> Pending:
        """Take a proposal in; one that is known is returned as it is."""
        return self.pending.setdefault(proposal.id, Pending(proposal, [proposal.draft.issuer.principal]))

    def find(self, draft: Command) -> Pending | None:
        """Return the proposal that the same person made under the same idempotency key."""
        if not draft.idempotency_key:
            return None
        return next((p for p in self.pending.values() if _request(p.proposal.draft) == _request(draft)), None)

    def check(self, proposal_id: str, principal: str, now_ns: int, *, approve: bool) -> Pending:
        """Return the proposal that `principal` may vote on.

        :raises UnknownProposalError: when there is none, or it is settled.
        :raises SamePersonError: when the same person would approve twice.
        """
        pending = self.pending.get(proposal_id)
        if pending is None or pending.state(now_ns) != "pending":
            raise UnknownProposalError(f"no pending proposal {proposal_id!r}", state=pending.state(now_ns) if pending else "unknown")
        if approve and principal in pending.approvers:
            raise SamePersonError(f"{principal} has approved already; another person has to")
        return pending

    def vote(self, vote: Vote) -> None:
        """Note what a person said."""
        pending = self.pending.get(vote.proposal_id)
        if pending is None:
            return
        if not vote.approve:
            pending.rejected_by = vote.principal
        elif vote.principal not in pending.approvers:
            pending.approvers.append(vote.principal)
        pending.command_id = pending.command_id or vote.command_id


def _request(draft: Command) -> tuple[str, str, bytes]:
    return draft.issuer.principal, draft.idempotency_key, draft.request_sha256
