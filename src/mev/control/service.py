"""Issuing commands: signed, kept, published, and counted as done only by the answers of the fleet.

Two orders of work. What may raise risk is audited, kept on disk and then published: if it cannot be written down it does not happen.
What lowers risk is published first and written down right after: nothing that can block or fail stands before a stop.
"""

import asyncio
import hashlib
import logging
from collections import deque
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass

from google.protobuf.message import Message
from prometheus_client import Gauge

from mev.bus.publisher import Publisher
from mev.control.audit import SYSTEM, Audit
from mev.control.book import Book
from mev.control.compaction import compacted
from mev.control.enrolments import Enrolments, topic_key
from mev.control.errors import (
    IdempotencyConflictError,
    InvalidCommandError,
    JournalError,
    OvertakenError,
    UnknownProposalError,
    UnreadError,
)
from mev.control.journal import Journal
from mev.control.ledger import Issued
from mev.control.proposals import Pending
from mev.control.races import Races
from mev.core.clock import now_ns
from mev.core.errors import MevError, UnavailableError
from mev.core.ids import new_id
from mev.crypto.envelope import seal
from mev.wire.orders import order, scopes, subject
from mev.wire.pb.control_pb2 import ACTIVE, HALTED, Command, Lease, Proposal, SetLevel, Snapshot, Target, Version, Vote
from mev.wire.pb.envelope_pb2 import Envelope
from mev.wire.registry import Record
from mev.wire.topics import CONTROL

LOG = logging.getLogger(__name__)
UNKEPT = Gauge("mev_control_unkept", "Messages in force that wait in memory because the control journal cannot be written; alert above 0.")
MAX_COMMAND_BYTES = 256 << 10
_MAX_UNKEPT = 10_000
_KEEP_RETRY_S = 0.5
_TIDY_S = 1.0
_READ_BACK_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """Times and numbers of control."""

    approvals_required: int
    command_ttl_s: float
    proposal_ttl_s: float
    lease_ttl_s: float
    lease_renew_s: float
    publish_wait_s: float
    forget_agents_s: float
    compact_journal_bytes: int


class Control:
    """The control plane's own side of every order. Belongs to one event loop. `mark` is a number that no other replica has."""

    def __init__(self, book: Book, journal: Journal, publisher: Publisher, audit: Audit, terms: Terms, *, mark: int = 0) -> None:
        self.book = book
        self.terms = terms
        self.control_offset = 0  # of the control topic, up to which everything is in the book
        self.enrolments = Enrolments(book, audit, self._write_in_order, forget_s=terms.forget_agents_s)
        book.on_read, book.on_early_answer = self._read_back, self._keep_later
        self._journal = journal
        self._publisher = publisher
        self._audit = audit
        self._mark = mark
        self._races = Races()
        self._awaited: dict[bytes, asyncio.Future[None]] = {}
        self._issuing = asyncio.Lock()
        self._voting = asyncio.Lock()
        self._keeping = asyncio.Lock()
        self._compact_at = terms.compact_journal_bytes
        self._unkept: deque[bytes] = deque()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Read the journal."""
        self._replay(await asyncio.to_thread(lambda: list(self._journal.read())))

    async def announce_keys(self) -> None:
        """Tell other replicas, now and in times to come, of the key set in force; return when that was read back."""
        payload = Envelope.FromString(self.book.keys.key_set_envelope).payload
        await self._publish_in_order(self.book.keys.announcement(), f"key-set:{hashlib.sha256(payload).hexdigest()[:16]}")

    async def begin(self) -> None:
        """Where nobody ever ordered a level, order everybody to stand still, so that only people ever raise. Call it when all is read."""
        if self.book.ledger.latest("level", "all") is None:
            draft = Command(target=Target(all=True), level=SetLevel(level=HALTED, reason="first start"), priority=9)
            draft.issuer.principal = SYSTEM
            await self.lower(draft)

    async def issue(self, draft: Command) -> Issued:
        """Issue a command: audited and on disk before it is published.

        What the brokers have not taken in time is NOT_SENT, and published when they do.

        :raises MevError: when it cannot be audited or kept; it is then not issued.
        """
        async with self._issuing:
            if (known := self._repeat(draft)) is not None:
                return known
            issued = await self._enter(draft)
        await self._settle(self._publish(issued))
        return issued

    async def lower(self, draft: Command) -> Issued:
        """Issue a command that lowers what agents may do: out first, written down right after, whatever else is broken."""
        known = self._repeat(draft)
        if known and not known.superseded_by:  # a stop that has been overtaken is a new stop
            return known
        command, envelope = self._sign(draft)
        issued = self.book.take(command, envelope)
        self._races.begin(command)
        publishing = self._later(self._publish(issued))
        await asyncio.sleep(0)  # the task has handed it to the producer when this returns
        action = f"control.{command.WhichOneof('body')}"
        self._audit.record_later(command.issuer.principal, action, _about(command), correlation_id=command.id)
        await self._settle(publishing, self._keep(envelope))
        return issued

    def raises(self, draft: Command) -> bool:
        """Say whether a level command allows more than is ordered now for a scope it names, or calls back who stepped down."""
        now, level = now_ns(), draft.level.level
        ordered = [self.book.ledger.ordered_level(scope, now) for scope in scopes(draft.target)]
        stepped_down = any(agent.last_seen_ns and agent.running.level < level for agent in self.book.fleet.meant(draft.target))
        return level == ACTIVE or level > min(ordered) or (level == min(ordered) and stepped_down)

    async def raise_level(self, draft: Command) -> Issued | Pending:
        """Issue a command that raises, or, when more people have to agree, propose it."""
        if self.terms.approvals_required <= 1:
            draft.issuer.approvers.append(draft.issuer.principal)
            return await self.issue(draft)
        if (known := self.book.proposals.find(draft)) is not None:
            return known
        self.book.proposals.check_room(draft.issuer.principal, now_ns())
        _check_size(draft.ByteSize())
        proposal = Proposal(
            id=new_id(),
            draft=draft,
            approvals_required=self.terms.approvals_required,
            proposed_at_ns=now_ns(),
            expires_at_ns=now_ns() + round(self.terms.proposal_ttl_s * 1e9),
        )
        await self._audit.record(draft.issuer.principal, "control.propose", proposal.id)
        await self._write(proposal, proposal.id)
        return self.book.proposals.pending.get(proposal.id) or Pending(proposal, [draft.issuer.principal])  # where it has expired by now

    async def vote(self, proposal_id: str, principal: str, *, approve: bool) -> Pending:
        """Note what a person says to a proposal; the approval that makes them enough issues the command.

        Of people who vote at once, at whatever replicas, the topic says who was the last. Where that one's command could not be issued,
        the same person may approve again.

        :raises UnknownProposalError, SamePersonError: when it cannot be.
        """
        async with self._voting:
            pending = self.book.proposals.check(proposal_id, principal, now_ns(), approve=approve)
            if approve:
                self._refuse_overtaken(pending.proposal)
            await self._audit.record(principal, "control.approve" if approve else "control.reject", proposal_id)
            vote = Vote(proposal_id=proposal_id, principal=principal, approve=approve, at_ns=now_ns())
            key = f"vote:{proposal_id}:{principal}"  # one for each person: the compacted topic keeps what each of them said
            if pending.decided_by is None:
                await self._write_in_order(vote, key)
                if not (principal in pending.approvers if approve else pending.rejected_by == principal):
                    raise UnknownProposalError(f"proposal {proposal_id!r} was settled by somebody else meanwhile", state="settled")
            else:
                vote.at_ns = pending.decided_by[1]
            if approve and pending.decided_by == (principal, vote.at_ns):
                draft = Command.FromString(pending.proposal.draft.SerializeToString())
                draft.issuer.approvers.extend(pending.approvers)
                draft.idempotency_key = ""
                vote.command_id = (await self.issue(draft)).command.id
                await self._write(vote, key)
            return pending

    def _refuse_overtaken(self, proposal: Proposal) -> None:
        for scope in scopes(proposal.draft.target):
            latest = self.book.ledger.latest("level", scope)
            if latest and latest.command.issued_at_ns > proposal.proposed_at_ns:
                raise OvertakenError(f"the level of {scope} was ordered anew after this was proposed; propose it again")

    async def adopt_key_set(self, envelope: bytes, principal: str) -> None:
        """Put a newer key set in force and order again, under it, what is in force.

        :raises EnvelopeError: when it is not newer, or too few root keys signed it.
        """
        await self._audit.record(principal, "control.key-set", f"{len(envelope)} bytes")
        self.book.keys.adopt(envelope, now_ns())
        await self._publisher.publish(CONTROL, [_record("key-set", envelope)], partition=0)
        enrolments = [agent.enrolment for agent in self.book.fleet.agents.values()]  # a replica to come knows the new key only
        await self._publisher.publish(CONTROL, [_record(topic_key(one), self._seal(one)) for one in enrolments], partition=0)
        await self._order_all_again()

    def snapshot(self) -> bytes:
        """Return everything a joining agent must know, signed now."""
        commands = [seal(issued.command, self.book.keys.signing) for issued in self.book.ledger.in_force(now_ns())]
        return self._seal(Snapshot(version=self._next_version(), issued_at_ns=now_ns(), commands=commands))

    async def renew_leases(self) -> None:
        """Renew everybody's permission to trade, again and again, until cancelled."""
        while True:
            ttl_ns = round(self.terms.lease_ttl_s * 1e9)
            now = now_ns()
            lease = Lease(version=self._next_version(), target=Target(all=True), issued_at_ns=now, expires_at_ns=now + ttl_ns)
            try:
                await self._publisher.publish(CONTROL, [_record("lease", self._seal(lease))], partition=0)
                await self._publish_again()
            except UnavailableError as error:
                LOG.warning("lease not renewed: %s", error, extra={"action": "lease_failed"})
            except Exception:  # whatever it is, the next renewal is tried: a fleet must not stop because a task ended unseen
                LOG.exception("lease not renewed", extra={"action": "lease_failed"})
            await asyncio.sleep(self.terms.lease_renew_s)

    async def _publish_again(self) -> None:
        """Publish what is in force where some of it has not come out, for instance because the brokers were away."""
        waiting = [issued for issued in self.book.ledger.in_force(now_ns()) if not issued.published]
        if waiting:  # by now a command may be too old to be obeyed; a snapshot never is
            records = [_record("snapshot", self.snapshot()), *map(_command_record, waiting)]
            await self._publisher.publish(CONTROL, records, partition=0)
            for issued in waiting:
                issued.published = True

    def received(self, raw: bytes, late_at_ns: int = 0) -> None:
        """Take a message from the control or report topic, of any replica or agent; `late_at_ns` as for :meth:`Book.apply`."""
        if self.book.apply(raw, now_ns(), late_at_ns):
            self._keep_later(raw)
        if (awaited := self._awaited.pop(raw, None)) is not None and not awaited.done():
            awaited.set_result(None)

    def _keep_later(self, raw: bytes) -> None:
        if len(self._unkept) < _MAX_UNKEPT:
            self._later(self._keep(raw))
        else:
            LOG.error("a message is not kept: too many wait for the journal", extra={"action": "control_not_kept"})

    def _read_back(self, command: Command, is_new: bool) -> None:
        about, ledger = subject(command), self.book.ledger
        if (issued := ledger.commands.get(command.id)) is not None:
            issued.published = True
        for scope in scopes(command.target):
            # What comes after a newer one takes its place in the compacted topic: the newer one has to come again.
            if (latest := ledger.latest(about, scope)) is not None and order(latest.command.version) > order(command.version):
                latest.published = False
        if about == "level" and (again := self._races.read(command, is_new=is_new)) is not None:
            self._later(self._order_again(again))

    async def _order_again(self, lowest: Command) -> None:
        LOG.warning("levels were ordered at once; the lowest is ordered again: %s", _about(lowest), extra={"action": "control_race"})
        draft = Command(level=lowest.level, target=lowest.target, priority=9)
        draft.issuer.principal = lowest.issuer.principal
        try:
            issued = await self.lower(draft)
        except MevError as error:
            LOG.error("the level is not ordered again: %s", error, extra={"action": "control_race"})
            return
        if (overtaken := self.book.ledger.commands.get(lowest.id)) is not None:
            overtaken.superseded_by = issued.command.id

    async def keep_waiting(self) -> None:
        """Try again and again to write down what the journal did not take, until cancelled."""
        while True:
            await asyncio.sleep(_KEEP_RETRY_S)
            if self._unkept:
                await asyncio.shield(self._later(self._keep_again()))

    async def tidy(self) -> None:
        """Forget again and again what is settled or silent for long, and compact the journal when it has grown, until cancelled."""
        while True:
            await asyncio.sleep(_TIDY_S)
            self.book.proposals.forget_expired(now_ns())
            try:
                await self.enrolments.forget_silent()
                await asyncio.shield(self._later(self._compact()))
            except MevError as error:
                LOG.warning("control is not tidied up: %s", error, extra={"action": "control_not_tidy"})

    async def _compact(self) -> None:
        if self._journal.size_bytes < self._compact_at:
            return
        async with self._keeping:
            await asyncio.to_thread(self._journal.compact, lambda envelopes: compacted(envelopes, self.book))
        # A journal of which nothing can be left out is not read again before it has doubled.
        self._compact_at = max(self.terms.compact_journal_bytes, 2 * self._journal.size_bytes)
        LOG.info("the control journal has %d bytes now", self._journal.size_bytes, extra={"action": "control_compacted"})

    async def close(self) -> None:
        """Finish what is under way, as far as it can be."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self.terms.publish_wait_s)
        await self._keep_again()
        if self._unkept:
            LOG.error("%d messages in force were never kept", len(self._unkept), extra={"action": "control_not_kept"})
        self._journal.close()

    def _repeat(self, draft: Command) -> Issued | None:
        known = self.book.ledger.find(draft.issuer.principal, draft.idempotency_key)
        if known and known.command.request_sha256 != draft.request_sha256:
            raise IdempotencyConflictError(
                f"Idempotency-Key {draft.idempotency_key!r} belongs to command {known.command.id}, which asked for something else"
            )
        return known

    async def _enter(self, draft: Command) -> Issued:
        """Sign a command, audit it, keep it and put it in force; nothing else is issued meanwhile."""
        command, envelope = self._sign(draft)
        who, action = command.issuer.principal, f"control.{command.WhichOneof('body')}"
        await self._audit.record(who, action, _about(command), correlation_id=command.id)
        try:
            await self._append(envelope)
        except JournalError as error:
            self._audit.record_later(who, action, _about(command), error.code, correlation_id=command.id)
            raise
        issued = self.book.take(command, envelope)
        self._races.begin(command)
        return issued

    async def _order_all_again(self) -> None:
        """Order again what is in force. Whoever issues something waits; a stop does not, and is not undone."""
        publishing, ledger = [], self.book.ledger
        async with self._issuing:  # what was being issued under the keys before is in force by now
            in_force = [issued.command for issued in ledger.in_force(now_ns())]
            known = {command.id for command in in_force}
            for command in in_force:
                latest = [one.command for scope in scopes(command.target) if (one := ledger.latest(subject(command), scope)) is not None]
                # What came meanwhile, and a level that ends by itself, are not to be undone by the one below.
                if any(one.id not in known or (one.level.until_ns and one.id != command.id) for one in latest):
                    continue
                issued = await self._enter(_again(command))
                known.add(issued.command.id)
                publishing.append(self._later(self._publish(issued)))
        if publishing:
            await self._settle(*publishing)

    def _sign(self, draft: Command) -> tuple[Command, bytes]:
        command = Command.FromString(draft.SerializeToString())
        now = now_ns()
        command.id = new_id()
        command.version.CopyFrom(self._next_version())
        command.issued_at_ns = now
        command.expires_at_ns = command.expires_at_ns or now + round(self.terms.command_ttl_s * 1e9)
        envelope = self._seal(command)
        _check_size(len(envelope))  # what cannot be published must not be in force
        return command, envelope

    def _next_version(self) -> Version:
        return Version(epoch=self.book.keys.trust.epoch, counter=self.book.ledger.next_counter(now_ns(), self._mark))

    def _seal(self, message: Message) -> bytes:
        return seal(message, self.book.keys.signer()).SerializeToString()

    async def _write(self, message: Message, key: str) -> None:
        envelope = self._seal(message)
        await self._append(envelope)
        self.book.apply(envelope, now_ns())
        await self._publisher.publish(CONTROL, [_record(key, envelope)], partition=0)

    async def _write_in_order(self, message: Message, key: str) -> None:
        """Publish a message that counts where the topic has it; return when it is read back, applied and, if possible, on disk.

        :raises UnreadError: when it does not come back in time; it may count all the same.
        """
        await self._publish_in_order(self._seal(message), key)
        await self._keep_again()

    async def _publish_in_order(self, envelope: bytes, key: str) -> None:
        read = self._awaited.setdefault(envelope, asyncio.get_running_loop().create_future())
        try:
            await self._publisher.publish(CONTROL, [_record(key, envelope)], partition=0)
            await asyncio.wait_for(asyncio.shield(read), _READ_BACK_S)
        except TimeoutError:
            raise UnreadError(f"{key} was published and not read back within {_READ_BACK_S:g} s; ask again", retry_after_s=5) from None
        finally:
            self._awaited.pop(envelope, None)

    async def _publish(self, issued: Issued) -> None:
        """Publish a command; one that the brokers did not take stays NOT_SENT and is published again later."""
        try:
            await self._publisher.publish(CONTROL, [_command_record(issued)], partition=0)
            issued.published = True
        except UnavailableError as error:
            LOG.error("command %s is not out: %s", issued.command.id, error, extra={"action": "control_not_published"})

    async def _settle(self, *work: "Coroutine[None, None, None] | asyncio.Task[None]") -> None:
        """Wait for `work`, but not longer than an answer may take; it goes on by itself."""
        tasks = [one if isinstance(one, asyncio.Task) else self._later(one) for one in work]
        await asyncio.wait(tasks, timeout=self.terms.publish_wait_s)

    async def _append(self, envelope: bytes) -> None:
        """Put `envelope` into the journal, behind all that waits for it."""
        async with self._keeping:
            await self._drain()
            await asyncio.to_thread(self._journal.append, envelope)

    async def _keep(self, envelope: bytes) -> None:
        """Put what is in force already into the journal, at once or as soon as it can be."""
        self._unkept.append(envelope)
        try:
            async with self._keeping:
                await self._drain()
        except JournalError as error:
            UNKEPT.set(len(self._unkept))
            LOG.error("not kept yet: %s", error, extra={"action": "control_not_kept"})

    async def _keep_again(self) -> None:
        with suppress(JournalError):  # said when it failed first
            async with self._keeping:
                await self._drain()

    async def _drain(self) -> None:
        while self._unkept:
            await asyncio.to_thread(self._journal.append, self._unkept[0])
            self._unkept.popleft()
        UNKEPT.set(0)

    def _later(self, work: Coroutine[None, None, None]) -> "asyncio.Task[None]":
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _replay(self, envelopes: list[bytes]) -> None:
        for envelope in envelopes:
            self.book.replay(envelope)
        self.book.proposals.forget_expired(now_ns())
        kept = compacted(envelopes, self.book)
        if len(kept) < len(envelopes) // 2:
            self._journal.rewrite(kept)
        # What is in force is published again: it may never have come out, and an embedded broker has forgotten it.
        in_force = {issued.command.id for issued in self.book.ledger.in_force(now_ns())}
        for issued in self.book.ledger.commands.values():
            issued.published = issued.command.id not in in_force


def _again(command: Command) -> Command:
    draft = Command.FromString(command.SerializeToString())
    draft.idempotency_key, draft.expires_at_ns = "", 0
    del draft.issuer.approvers[:]  # what stepped down since was not approved to rise
    return draft


def _check_size(size_bytes: int) -> None:
    if size_bytes > MAX_COMMAND_BYTES:
        raise InvalidCommandError(f"the command has {size_bytes} bytes; {MAX_COMMAND_BYTES} are allowed")


def _record(key: str, envelope: bytes) -> Record:
    return {"key": key.encode(), "value": envelope}


def _command_record(issued: Issued) -> Record:
    command = issued.command
    # The level below one that ends has to stay in the compacted topic.
    ending = f"#{command.level.until_ns}" if command.level.until_ns else ""
    return _record(f"{subject(command)}@{','.join(scopes(command.target))}{ending}", issued.envelope)


def _about(command: Command) -> str:
    return f"{subject(command)} of {', '.join(scopes(command.target)) or 'nobody'}"
