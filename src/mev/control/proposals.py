"""Proposals: commands that raise risk wait here for the approval of more people."""

from dataclasses import dataclass, field

from mev.control.errors import SamePersonError, TooManyProposalsError
from mev.core.errors import NotFoundError
from mev.wire.pb.control_pb2 import Command, Proposal, Vote

MAX_OF_ONE_PERSON = 100
KEPT_EXPIRED = 50


@dataclass(slots=True)
class Pending:
    """A proposal and its votes; the proposer has approved it."""

    proposal: Proposal
    approvers: list[str] = field(default_factory=list)
    rejected_by: str = ""
    command_id: str = ""
    decided_by: tuple[str, int] | None = None
    """The person and time of the deciding approval; the replica that took it issues the command."""

    @property
    def order(self) -> tuple[int, str]:
        """Sort key: by time."""
        return self.proposal.proposed_at_ns, self.proposal.id

    def state(self, now_ns: int) -> str:
        """Return ``issued``, ``rejected``, ``expired`` or ``pending``."""
        if self.command_id:
            return "issued"
        if self.rejected_by:
            return "rejected"
        return "expired" if now_ns >= self.proposal.expires_at_ns else "pending"

    def is_waiting_for(self, principal: str, now_ns: int) -> bool:
        """Return whether an approval by `principal` counts."""
        if self.state(now_ns) != "pending":
            return False
        if self.decided_by:  # its command could not be issued; the same person can try again
            return self.decided_by[0] == principal
        return principal not in self.approvers


class Proposals:
    """Proposals by id, oldest first: all that have not expired, and the newest expired ones."""

    def __init__(self) -> None:
        self.pending: dict[str, Pending] = {}

    def add(self, proposal: Proposal) -> Pending:
        """Add a proposal; a known one is unchanged."""
        return self.pending.setdefault(
            proposal.id, Pending(proposal, [proposal.draft.issuer.principal])
        )

    def check_room(self, principal: str, now_ns: int) -> None:
        """Check the limit of unexpired proposals per person, decided or not.

        :raises TooManyProposalsError: if it is reached.
        """
        own = [
            p
            for p in self.pending.values()
            if p.proposal.draft.issuer.principal == principal and now_ns < p.proposal.expires_at_ns
        ]
        if len(own) >= MAX_OF_ONE_PERSON:
            raise TooManyProposalsError(
                f"{principal} has {len(own)} proposals that have not expired; wait for one to end"
            )

    def forget_expired(self, now_ns: int) -> None:
        """Remove expired proposals except the newest.

        Decided ones stay until they expire, so that no copy can be decided again.
        """
        expired = sorted(
            (p for p in self.pending.values() if now_ns >= p.proposal.expires_at_ns),
            key=lambda pending: pending.order,
        )
        for pending in expired[:-KEPT_EXPIRED]:
            del self.pending[pending.proposal.id]

    def find(self, draft: Command) -> Pending | None:
        """Return the same person's proposal with the same idempotency key, or None."""
        if not draft.idempotency_key:
            return None
        return next(
            (p for p in self.pending.values() if _request(p.proposal.draft) == _request(draft)),
            None,
        )

    def check(self, proposal_id: str, principal: str, now_ns: int, *, approve: bool) -> Pending:
        """Return the proposal that `principal` may vote on.

        :raises NotFoundError: if it does not exist, or is settled.
        :raises SamePersonError: if the same person would approve twice.
        """
        pending = self.pending.get(proposal_id)
        if pending is None or pending.state(now_ns) != "pending":
            raise NotFoundError(
                f"no pending proposal {proposal_id!r}",
                state=pending.state(now_ns) if pending else "unknown",
                code="unknown_proposal",
            )
        if pending.decided_by and not (approve and pending.decided_by[0] == principal):
            raise NotFoundError(
                f"proposal {proposal_id!r} has been approved by enough people",
                state="approved",
                code="unknown_proposal",
            )
        if approve and not pending.decided_by and principal in pending.approvers:
            raise SamePersonError(f"{principal} has approved already; another person has to")
        return pending

    def vote(self, vote: Vote) -> bool:
        """Record a vote; return whether it is new.

        Votes after the deciding approval or a rejection are ignored.
        """
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
