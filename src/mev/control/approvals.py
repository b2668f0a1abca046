"""Approvals: proposals, votes, and the command or deployment that the last approval starts."""

import asyncio
from collections.abc import Awaitable, Callable

from google.protobuf.message import Message

from mev.control.audit import AuditWriter, actor_of, details_of
from mev.control.command_store import CommandRecord
from mev.control.control_state import ControlState
from mev.control.errors import OvertakenError
from mev.control.proposals import Pending
from mev.control.validate import check_size
from mev.core.clock import Clock
from mev.core.errors import NotFoundError
from mev.core.ids import new_id
from mev.wire.orders import scopes, subject
from mev.wire.pb.control_pb2 import Command, Proposal, Target, Vote

Write = Callable[[Message, str], Awaitable[None]]
BeginDeployment = Callable[[str, tuple[str, ...]], Awaitable[str]]


class Approvals:
    """Proposes commands that raise risk, and counts votes.

    `write` signs, stores and publishes a message under a key. `write_in_order` returns only once
    the message has been read back. `issue` issues an approved command. A proposal ends after
    `ttl_s`.
    """

    def __init__(
        self,
        state: ControlState,
        audit: AuditWriter,
        *,
        write: Write,
        write_in_order: Write,
        issue: Callable[[Command], Awaitable[CommandRecord]],
        required: int,
        ttl_s: float,
        clock: Clock,
    ) -> None:
        self.begin_deployment: BeginDeployment | None = None
        """Starts an approved deployment, given its request and approvers; returns its id."""
        self._state = state
        self._audit = audit
        self._write = write
        self._write_in_order = write_in_order
        self._issue = issue
        self._required = required
        self._ttl_s = ttl_s
        self._clock = clock
        self._voting = asyncio.Lock()

    @property
    def needed(self) -> bool:
        """True if commands that may raise risk need more than one person."""
        return self._required > 1

    async def propose(self, proposal: Proposal) -> Pending:
        """Propose a command that needs approval; `proposal` has the draft and the reasons."""
        draft = proposal.draft
        if (known := self._state.proposals.find(draft)) is not None:
            return known
        self._state.proposals.check_room(draft.issuer.principal, self._clock())
        check_size(proposal.ByteSize())
        proposal.id = new_id()
        proposal.approvals_required = self._required
        proposal.proposed_at_ns = self._clock()
        proposal.expires_at_ns = self._clock() + round(self._ttl_s * 1e9)
        details = {"raises": list(proposal.raises), **details_of(draft, self._state)}
        await self._audit.record(
            actor_of(draft.issuer.principal), "control.propose", proposal.id, details=details
        )
        await self._write(proposal, proposal.id)
        # It may have expired by now.
        return self._state.proposals.pending.get(proposal.id) or Pending(
            proposal, [draft.issuer.principal]
        )

    async def vote(self, proposal_id: str, principal: str, *, approve: bool) -> Pending:
        """Record a vote; the last approval needed issues the command.

        If people vote at once at several replicas, the order in the topic decides which approval
        was the last. If its command could not be issued, the same person may approve again.

        :raises NotFoundError, SamePersonError: if the vote is not allowed.
        """
        async with self._voting:
            pending = self._state.proposals.check(
                proposal_id, principal, self._clock(), approve=approve
            )
            if approve:
                self._refuse_overtaken(pending.proposal)
            action, details = (
                "control.approve" if approve else "control.reject",
                details_of(pending.proposal.draft, self._state),
            )
            await self._audit.record(actor_of(principal), action, proposal_id, details=details)
            vote = Vote(
                proposal_id=proposal_id, principal=principal, approve=approve, at_ns=self._clock()
            )
            # One key per person: the compacted topic retains each person's vote.
            key = f"vote:{proposal_id}:{principal}"
            if pending.decided_by is None:
                await self._write_in_order(vote, key)
                if not (
                    principal in pending.approvers if approve else pending.rejected_by == principal
                ):
                    raise NotFoundError(
                        f"proposal {proposal_id!r} has been settled by another vote",
                        state="settled",
                        code="unknown_proposal",
                    )
            else:
                vote.at_ns = pending.decided_by[1]
            if approve and pending.decided_by == (principal, vote.at_ns):
                vote.command_id = await self._carry_out(pending)
                await self._write(vote, key)
            return pending

    async def _carry_out(self, pending: Pending) -> str:
        """Execute an approved proposal; return the id of the command or deployment."""
        proposal = pending.proposal
        if proposal.deployment_json:
            assert self.begin_deployment is not None  # noqa: S101 - set before requests are served
            return await self.begin_deployment(proposal.deployment_json, tuple(pending.approvers))
        draft = Command.FromString(proposal.draft.SerializeToString())
        draft.issuer.approvers.extend(pending.approvers)
        draft.idempotency_key = ""
        return (await self._issue(draft)).command.id

    def _refuse_overtaken(self, proposal: Proposal) -> None:
        """Refuse a proposal if a newer command on its subject has been issued since."""
        about = "model" if proposal.deployment_json else subject(proposal.draft)
        for issued in self._state.command_store.latest_of(about):
            command = issued.command
            if command.issued_at_ns > proposal.proposed_at_ns and self._meet(
                command.target, proposal.draft.target
            ):
                raise OvertakenError(
                    f"{about} of {', '.join(scopes(command.target))} was ordered again "
                    "after this was proposed; propose it again"
                )

    def _meet(self, one: Target, other: Target) -> bool:
        """Return whether two targets have an agent in common."""
        if set(scopes(one)) & set(scopes(other)):
            return True
        ids = {agent.id for agent in self._state.fleet.meant(one)}
        return any(agent.id in ids for agent in self._state.fleet.meant(other))
