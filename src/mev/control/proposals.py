"""Commands that wait for more people: raising what agents may do is nobody's decision alone."""

from dataclasses import dataclass, field

from mev.control.errors import SamePersonError, TooManyProposalsError, UnknownProposalError
from mev.wire.pb.control_pb2 import Command, Proposal, Vote

MAX_OF_ONE_PERSON = 100
KEPT_EXPIRED = 50


@dataclass(slots=True)
class Pending:
    """A proposal and what people said to it; whoever proposed it has approved it."""

    proposal: Proposal
    approvers: list[str] = field(default_factory=list)
    rejected_by: str = ""
    command_id: str = ""
    decided_by: tuple[str, int] | None = None
    """Whose approval made them enough, and when it was given: whoever took it issues the command."""

    @property
    def order(self) -> tuple[int, str]:
        """By what proposals are ordered in time."""
        return self.proposal.proposed_at_ns, self.proposal.id

    def state(self, now_ns: int) -> str:
        """Return ``issued``, ``rejected``, ``expired`` or ``pending``."""
        if self.command_id:
            return "issued"
        if self.rejected_by:
            return "rejected"
        return "expired" if now_ns >= self.proposal.expires_at_ns else "pending"


class Proposals:
    """Every proposal that has not expired, and the newest that have, by id, oldest first."""

    def __init__(self) -> None:
        self.pending: dict[str, Pending] = {}

    def add(self, proposal: Proposal) -> Pending:
        """Take a proposal in; one that is known is returned as it is."""
        return self.pending.setdefault(proposal.id, Pending(proposal, [proposal.draft.issuer.principal]))

    def check_room(self, principal: str, now_ns: int) -> None:
        """Refuse another proposal of somebody who has many that have not expired, decided or not.

        :raises TooManyProposalsError: then.
        """
        own = [p for p in self.pending.values() if p.proposal.draft.issuer.principal == principal and now_ns < p.proposal.expires_at_ns]
        if len(own) >= MAX_OF_ONE_PERSON:
            raise TooManyProposalsError(f"{principal} has {len(own)} proposals that have not expired; wait until some have")

    def forget_expired(self, now_ns: int) -> None:
        """Forget what has expired but for the newest; a decided one stays until then, so that no copy of it can be decided again."""
        expired = sorted((p for p in self.pending.values() if now_ns >= p.proposal.expires_at_ns), key=lambda pending: pending.order)
        for pending in expired[:-KEPT_EXPIRED]:
            del self.pending[pending.proposal.id]

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
        if pending.decided_by and not (approve and pending.decided_by[0] == principal):
            raise UnknownProposalError(f"proposal {proposal_id!r} has been approved by enough people", state="approved")
        if approve and not pending.decided_by and principal in pending.approvers:
            raise SamePersonError(f"{principal} has approved already; another person has to")
        return pending

    def vote(self, vote: Vote) -> bool:
        """Note what a person said, and say whether it is news. Once they are enough, or somebody is against it, nothing else counts."""
        pending = self.pending.get(vote.proposal_id)
        if pending is None:
            return False
        before = len(pending.approvers), pending.rejected_by, pending.command_id
        is_open = not (pending.command_id or pending.rejected_by or pending.decided_by)
        if is_open and not vote.approve:
            pending.rejected_by = vote.principal
        elif is_open and vote.principal not in pending.approvers:
            pending.approvers.append(vote.principal)
            if len(pending.approvers) >= pending.proposal.approvals_required:
                pending.decided_by = vote.principal, vote.at_ns
        pending.command_id = pending.command_id or vote.command_id
        return before != (len(pending.approvers), pending.rejected_by, pending.command_id)


def _request(draft: Command) -> tuple[str, str, bytes]:
    return draft.issuer.principal, draft.idempotency_key, draft.request_sha256
