"""Issuing of commands: signed, stored, published, and complete only with the agents' reports.

There are two sequences. A command that may raise risk is audited, stored on disk and then
published: if it cannot be stored, it is not issued. A command that lowers risk is published first
and stored right after, so that nothing that can block or fail delays a stop.
"""

import asyncio
import hashlib
import logging
from collections.abc import Collection, Coroutine, Sequence
from dataclasses import dataclass

from google.protobuf.message import Message

from mev.bus.publisher import Publisher
from mev.control import risk
from mev.control.actions import ActionChecks
from mev.control.approvals import Approvals
from mev.control.audit import SYSTEM, AuditWriter, actor_of, details_of
from mev.control.command_store import CommandRecord
from mev.control.compaction import compacted
from mev.control.control_state import ControlState, LevelConflicts, is_report
from mev.control.enrolments import Enrolments, topic_key
from mev.control.errors import (
    IdempotencyConflictError,
    JournalError,
)
from mev.control.journal import EnvelopeJournal, JournalWriter
from mev.control.proposals import Pending
from mev.control.snapshots import SignedSnapshots
from mev.control.validate import check_size
from mev.core.clock import Clock, now_ns
from mev.core.errors import MevError, UnavailableError
from mev.core.ids import new_id
from mev.crypto.envelope import seal
from mev.crypto.errors import EnvelopeError
from mev.wire.orders import scopes, subject, version_key
from mev.wire.pb.control_pb2 import (
    ACTIVE,
    HALTED,
    Command,
    Lease,
    Level,
    Proposal,
    SetLevel,
    Target,
    Version,
)
from mev.wire.pb.envelope_pb2 import Envelope
from mev.wire.registry import KafkaRecord
from mev.wire.topics import CONTROL

LOG = logging.getLogger(__name__)
_MAX_WAITING = 10_000
_MAX_WAITING_BYTES = 32 << 20
_SHARE_OF_REPORTS = 0.5
"""Of the room for messages that wait for the journal: agents do not keep commands out."""
_KEEP_RETRY_S = 0.5
_TIDY_S = 1.0
_READ_BACK_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlSettings:
    """Settings of control."""

    approvals_required: int
    command_ttl_s: float
    proposal_ttl_s: float
    lease_ttl_s: float
    lease_renew_s: float
    publish_wait_s: float
    forget_agents_s: float
    compact_journal_bytes: int
    action_check_s: float
    max_schema_bytes: int
    max_params_bytes: int


class Control:
    """Issues and tracks the commands of the control plane.

    Belongs to one event loop. `mark` is a number that identifies this replica.
    """

    def __init__(
        self,
        state: ControlState,
        journal: EnvelopeJournal,
        publisher: Publisher,
        audit: AuditWriter,
        settings: ControlSettings,
        *,
        mark: int = 0,
        clock: Clock = now_ns,
    ) -> None:
        self.state = state
        self.settings = settings
        self.control_offset = 0  # of the control topic: everything below it has been applied
        self.enrolments = Enrolments(
            state, audit, self._write_in_order, forget_s=settings.forget_agents_s, clock=clock
        )
        state.on_read, state.on_early_answer = self._read_back, self._keep_later
        self.action_checks = ActionChecks(
            timeout_s=settings.action_check_s,
            max_schema_bytes=settings.max_schema_bytes,
        )
        self.approvals = Approvals(
            state,
            audit,
            write=self._write,
            write_in_order=self._write_in_order,
            issue=self.issue,
            required=settings.approvals_required,
            ttl_s=settings.proposal_ttl_s,
            clock=clock,
        )
        self._journal = JournalWriter(journal, compact_bytes=settings.compact_journal_bytes)
        self.snapshots = SignedSnapshots(
            state,
            next_version=self._next_version,
            control_offset=lambda: self.control_offset,
            clock=clock,
        )
        self._publisher = publisher
        self._audit = audit
        self._mark = mark
        self._clock = clock
        self._conflicts = LevelConflicts()
        self._awaited: dict[bytes, asyncio.Future[None]] = {}
        self._issuing = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Read the journal."""
        self._replay(await self._journal.read())

    async def announce_keys(self) -> None:
        """Publish the active key set for other replicas; return once it has been read back."""
        payload = Envelope.FromString(self.state.keys.key_set_envelope).payload
        await self._publish_in_order(
            self.state.keys.announcement(),
            f"key-set:{hashlib.sha256(payload).hexdigest()[:16]}",
        )

    async def begin(self) -> None:
        """Issue HALTED for all agents if no level was ever issued; only people raise levels.

        Call it after the topic has been read.
        """
        if self.state.command_store.latest("level", "all") is None:
            draft = Command(
                target=Target(all=True),
                level=SetLevel(level=HALTED, reason="first start"),
                priority=9,
            )
            draft.issuer.principal = SYSTEM
            await self.lower(draft)

    async def issue(self, draft: Command) -> CommandRecord:
        """Issue a command that needs no approval: audited and stored before it is published.

        If the brokers do not accept it in time, it is NOT_SENT and published later.

        :raises MevError: if it cannot be audited or stored; it is then not issued.
        """
        async with self._issuing:
            if (known := self._repeat(draft)) is not None:
                return known
            issued = await self._enter(draft)
        await self._settle(self._publish(issued))
        return issued

    async def order(self, draft: Command, raises: Sequence[str] = ()) -> CommandRecord | Pending:
        """Issue a command, or propose it if it may raise risk and needs approval.

        `raises` are reasons why it may raise risk, in addition to those found in its values.

        :raises MevError: if it cannot be audited or stored; it is then neither issued nor proposed.
        """
        # A command issued meanwhile could change the risk assessment.
        async with self._issuing:
            if (known := self._repeat(draft)) is not None:
                return known
            why = (
                [*raises, *risk.reasons(draft, self.state, self._clock())]
                if self.approvals.needed
                else []
            )
            issued = None if why else await self._enter(draft)
        if issued is None:
            return await self.approvals.propose(Proposal(draft=draft, raises=why))
        await self._settle(self._publish(issued))
        return issued

    async def lower(self, draft: Command) -> CommandRecord:
        """Issue a command that lowers risk: published first and stored right after.

        It does not depend on journal or audit trail.
        """
        known = self._repeat(draft)
        if known and not known.superseded_by:  # a repeat of a superseded stop is a new stop
            return known
        command, envelope = self._sign(draft)
        issued = self.state.take(command, envelope)
        self._conflicts.begin(command)
        publishing = self._later(self._publish(issued))
        await asyncio.sleep(0)  # lets the task pass it to the producer
        action = f"control.{command.WhichOneof('body')}"
        who, details = actor_of(command.issuer.principal), details_of(command, self.state)
        self._audit.record_later(
            who, action, _about(command), details=details, correlation_id=command.id
        )
        await self._settle(publishing, self._journal.keep(envelope))
        return issued

    def raises(self, draft: Command) -> bool:
        """Return whether a level command allows more than the current level of one of its scopes.

        Calling back agents that stepped down on their own counts too.
        """
        now, level = self._clock(), draft.level.level
        if level == HALTED:
            return False  # there is no lower level
        ordered = [
            self.state.command_store.ordered_level(scope, now) for scope in scopes(draft.target)
        ]
        stepped_down = any(
            agent.last_seen_ns and agent.running.level < level
            for agent in self.state.fleet.meant(draft.target)
        )
        return level == ACTIVE or level > min(ordered) or (level == min(ordered) and stepped_down)

    async def raise_level(self, draft: Command) -> CommandRecord | Pending:
        """Issue a command that raises the level, or propose it if it needs approval."""
        if not self.approvals.needed:
            draft.issuer.approvers.append(draft.issuer.principal)
            return await self.issue(draft)
        return await self.approvals.propose(
            Proposal(draft=draft, raises=[f"the level rises to {Level.Name(draft.level.level)}"])
        )

    async def adopt_key_set(self, envelope: bytes, principal: str) -> None:
        """Activate a newer key set, and issue all active commands again under it.

        :raises EnvelopeError: if it is not newer, or too few root keys signed it.
        """
        await self._audit.record(actor_of(principal), "control.key-set", f"{len(envelope)} bytes")
        self.state.keys.adopt(envelope, self._clock())
        await self._publisher.publish(CONTROL, [_record("key-set", envelope)], partition=0)
        # A replica that starts later knows only the new key.
        enrolments = [agent.enrolment for agent in self.state.fleet.agents.values()]
        await self._publisher.publish(
            CONTROL, [_record(topic_key(one), self._seal(one)) for one in enrolments], partition=0
        )
        await self._order_all_again()

    async def renew_leases(self) -> None:
        """Renew the leases of all agents periodically, until cancelled."""
        while True:
            ttl_ns = round(self.settings.lease_ttl_s * 1e9)
            now = self._clock()
            lease = Lease(
                version=self._next_version(),
                target=Target(all=True),
                issued_at_ns=now,
                expires_at_ns=now + ttl_ns,
            )
            try:
                await self._publisher.publish(
                    CONTROL, [_record("lease", self._seal(lease))], partition=0
                )
                await self._publish_again()
            except UnavailableError as error:
                LOG.warning("lease not renewed: %s", error, extra={"action": "lease_failed"})
            except Exception:  # the next renewal must be tried after any error
                LOG.exception("lease not renewed", extra={"action": "lease_failed"})
            await asyncio.sleep(self.settings.lease_renew_s)

    async def _publish_again(self) -> None:
        """Publish active commands that are unpublished, for example after a broker outage."""
        waiting = [
            issued
            for issued in self.state.command_store.in_force(self._clock())
            if not issued.published
        ]
        if waiting:  # agents may refuse an old command, but never a snapshot
            snapshot = (await self.snapshots.current()).envelope
            records = [_record("snapshot", snapshot), *map(_command_record, waiting)]
            await self._publisher.publish(CONTROL, records, partition=0)
            for issued in waiting:
                issued.published = True

    def received(self, raw: bytes, late_at_ns: int = 0) -> None:
        """Process a message from the control or report topic.

        `late_at_ns` is as in :meth:`ControlState.apply`.
        """
        if self.state.apply(raw, self._clock(), late_at_ns):
            self._keep_later(raw, _SHARE_OF_REPORTS if is_report(raw) else 1)
        if (awaited := self._awaited.pop(raw, None)) is not None and not awaited.done():
            awaited.set_result(None)

    def _keep_later(self, raw: bytes, share: float = _SHARE_OF_REPORTS) -> None:
        """Write a message to the journal; it may use `share` of the room for what waits."""
        if (
            self._journal.waiting < _MAX_WAITING * share
            and self._journal.waiting_bytes + len(raw) <= _MAX_WAITING_BYTES * share
        ):
            self._later(self._journal.keep(raw))
        else:
            LOG.error(
                "a message is not kept: too many wait for the journal",
                extra={"action": "control_not_kept"},
            )

    def _read_back(self, command: Command, is_new: bool) -> None:
        about, command_store = subject(command), self.state.command_store
        if (issued := command_store.commands.get(command.id)) is not None:
            issued.published = True
        for scope in scopes(command.target):
            # An older command replaces a newer one in the compacted topic: publish the newer one
            # again.
            if (latest := command_store.latest(about, scope)) is not None and version_key(
                latest.command.version
            ) > version_key(command.version):
                latest.published = False
        if about == "level" and (again := self._conflicts.read(command, is_new=is_new)) is not None:
            self._later(self._order_again(again))

    async def _order_again(self, lowest: Command) -> None:
        LOG.warning(
            "levels were ordered at once; the lowest is ordered again: %s",
            _about(lowest),
            extra={"action": "control_race"},
        )
        draft = Command(level=lowest.level, target=lowest.target, priority=9)
        draft.issuer.principal = lowest.issuer.principal
        try:
            issued = await self.lower(draft)
        except MevError as error:
            LOG.error("the level is not ordered again: %s", error, extra={"action": "control_race"})
            return
        if (overtaken := self.state.command_store.commands.get(lowest.id)) is not None:
            overtaken.superseded_by = issued.command.id

    async def keep_waiting(self) -> None:
        """Retry to store the messages that the journal refused, until cancelled."""
        while True:
            await asyncio.sleep(_KEEP_RETRY_S)
            if self._journal.waiting:
                await asyncio.shield(self._later(self._journal.store_waiting()))

    async def tidy(self) -> None:
        """Remove expired proposals and silent agents, and compact the journal, until cancelled."""
        while True:
            await asyncio.sleep(_TIDY_S)
            self.state.proposals.forget_expired(self._clock())
            try:
                await self.enrolments.forget_silent()
                await asyncio.shield(self._later(self._journal.compact(self._still_needed)))
            except MevError as error:
                LOG.warning(
                    "control is not tidied up: %s", error, extra={"action": "control_not_tidy"}
                )

    async def close(self) -> None:
        """Finish the running work, as far as possible."""
        self.action_checks.close()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self.settings.publish_wait_s)
        await self._journal.store_waiting()
        if self._journal.waiting:
            LOG.error(
                "%d active messages were never stored",
                self._journal.waiting,
                extra={"action": "control_not_kept"},
            )
        self._journal.close()

    def _still_needed(self, envelopes: Sequence[bytes]) -> list[bytes]:
        return compacted(envelopes, self.state)

    def _repeat(self, draft: Command) -> CommandRecord | None:
        known = self.state.command_store.find(draft.issuer.principal, draft.idempotency_key)
        if known and known.command.request_sha256 != draft.request_sha256:
            raise IdempotencyConflictError(
                f"Idempotency-Key {draft.idempotency_key!r} belongs to command "
                f"{known.command.id}, which asked for something else"
            )
        return known

    async def _enter(self, draft: Command) -> CommandRecord:
        """Sign, audit, store and activate a command; the caller holds the lock."""
        command, envelope = self._sign(draft)
        who, action = actor_of(command.issuer.principal), f"control.{command.WhichOneof('body')}"
        await self._audit.record(
            who,
            action,
            _about(command),
            details=details_of(command, self.state),
            correlation_id=command.id,
        )
        try:
            await self._journal.append(envelope)
        except JournalError as error:
            self._audit.record_later(
                who, action, _about(command), error.code, correlation_id=command.id
            )
            raise
        issued = self.state.take(command, envelope)
        self._conflicts.begin(command)
        return issued

    async def _order_all_again(self) -> None:
        """Issue all active commands again.

        Other commands wait meanwhile, except stops, which are not undone.
        """
        publishing, command_store = [], self.state.command_store
        async with self._issuing:  # commands being issued under the old keys are active by now
            in_force = command_store.in_force(self._clock())
            # Found before anything is issued again, which supersedes what it covers.
            scopes_of = {one.command.id: command_store.scopes_in_force(one) for one in in_force}
            known = set(scopes_of)
            disputed = {one.command.id for one in in_force if one.is_disputed}
            for command in [issued.command for issued in in_force]:
                names = scopes_of[command.id]
                latest = [
                    one for scope in names for one in command_store.newest(subject(command), scope)
                ]
                # Newer commands, expiring levels and settings that agents refused must not be
                # undone by the command below them.
                if any(
                    one.command.id not in known
                    or (
                        (one.command.level.until_ns or one.command.id in disputed)
                        and version_key(one.command.version) > version_key(command.version)
                    )
                    for one in latest
                ):
                    continue
                issued = await self._enter(_again(command, names))
                known.add(issued.command.id)
                publishing.append(self._later(self._publish(issued)))
        if publishing:
            await self._settle(*publishing)

    def _sign(self, draft: Command) -> tuple[Command, bytes]:
        command = Command.FromString(draft.SerializeToString())
        now = self._clock()
        command.id = new_id()
        command.version.CopyFrom(self._next_version())
        command.issued_at_ns = now
        command.expires_at_ns = command.expires_at_ns or now + round(
            self.settings.command_ttl_s * 1e9
        )
        envelope = self._seal(command)
        check_size(len(envelope))  # a command too large to publish must not become active
        return command, envelope

    def _next_version(self) -> Version:
        return Version(
            epoch=self.state.keys.trust.epoch,
            counter=self.state.command_store.next_counter(self._clock(), self._mark),
        )

    def _seal(self, message: Message) -> bytes:
        return seal(message, self.state.keys.signer()).SerializeToString()

    async def _write(self, message: Message, key: str) -> None:
        envelope = self._seal(message)
        await self._journal.append(envelope)
        self.state.apply(envelope, self._clock())
        await self._publisher.publish(CONTROL, [_record(key, envelope)], partition=0)

    async def _write_in_order(self, message: Message, key: str) -> None:
        """Publish a message that takes effect by its place in the topic; return once it is applied.

        It is also stored on disk, if possible.

        :raises UnavailableError: if it is not read back in time; it may still take effect.
        """
        await self._publish_in_order(self._seal(message), key)
        await self._journal.store_waiting()

    async def _publish_in_order(self, envelope: bytes, key: str) -> None:
        read = self._awaited.setdefault(envelope, asyncio.get_running_loop().create_future())
        try:
            await self._publisher.publish(CONTROL, [_record(key, envelope)], partition=0)
            await asyncio.wait_for(asyncio.shield(read), _READ_BACK_S)
        except TimeoutError:
            raise UnavailableError(
                f"{key} was published and not read back within {_READ_BACK_S:g} s; ask again",
                retry_after_s=5,
                code="control_unread",
            ) from None
        finally:
            self._awaited.pop(envelope, None)

    async def _publish(self, issued: CommandRecord) -> None:
        """Publish a command; if the brokers refuse it, it stays NOT_SENT and is published later."""
        try:
            await self._publisher.publish(CONTROL, [_command_record(issued)], partition=0)
            issued.published = True
        except UnavailableError as error:
            LOG.error(
                "command %s is not out: %s",
                issued.command.id,
                error,
                extra={"action": "control_not_published"},
            )

    async def _settle(self, *work: "Coroutine[None, None, None] | asyncio.Task[None]") -> None:
        """Wait for `work` for a limited time; afterwards it continues in the background."""
        tasks = [one if isinstance(one, asyncio.Task) else self._later(one) for one in work]
        await asyncio.wait(tasks, timeout=self.settings.publish_wait_s)

    def _later(self, work: Coroutine[None, None, None]) -> "asyncio.Task[None]":
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _replay(self, envelopes: list[bytes]) -> None:
        now, trusted = self._clock(), self.state.keys.stored_trust()
        sound: list[bytes] = []
        refused: list[EnvelopeError] = []
        for envelope in envelopes:
            try:
                self.state.replay(envelope, now, trusted)
            except EnvelopeError as error:
                refused.append(error)
            else:
                sound.append(envelope)
        self.state.proposals.forget_expired(now)
        if refused:
            self._note_damage(refused)
        kept = self._still_needed(sound)
        if refused or len(kept) < len(envelopes) // 2:
            self._journal.rewrite(kept)
        # Active commands are published again: publishing may have failed, or brokers lost them.
        in_force = {
            issued.command.id for issued in self.state.command_store.in_force(self._clock())
        }
        for issued in self.state.command_store.commands.values():
            issued.published = issued.command.id not in in_force

    def _note_damage(self, refused: Sequence[EnvelopeError]) -> None:
        copy, first = self._journal.copy(), refused[0]
        LOG.error(
            "%d messages of the control journal are left out, the first one because: %s; %s has "
            "the journal as it was",
            len(refused),
            first,
            copy,
            extra={"action": "control_journal_damaged"},
        )
        self._audit.record_later(
            SYSTEM,
            "control.journal_damaged",
            copy.name,
            "journal_damaged",
            {"left_out": len(refused), "first": f"{first.code}: {first.detail}"},
        )


def _again(command: Command, names: Collection[str]) -> Command:
    """Return the draft that issues a command again, in the scopes in which it is in force."""
    draft = Command.FromString(command.SerializeToString())
    draft.target.modules[:] = [one for one in command.target.modules if f"module:{one}" in names]
    draft.target.agent_ids[:] = [one for one in command.target.agent_ids if f"agent:{one}" in names]
    draft.idempotency_key, draft.expires_at_ns = "", 0
    del draft.issuer.approvers[:]  # they did not approve raising agents that stepped down since
    return draft


def _record(key: str, envelope: bytes) -> KafkaRecord:
    return {"key": key.encode(), "value": envelope}


def _command_record(issued: CommandRecord) -> KafkaRecord:
    command = issued.command
    # Compaction must not remove the level below an expiring one, or a policy before a later one.
    ending = f"#{command.level.until_ns}" if command.level.until_ns else ""
    if command.policy.effective_from_ns > command.issued_at_ns:
        ending = f"#{command.policy.effective_from_ns}"
    return _record(
        f"{subject(command)}@{','.join(scopes(command.target))}{ending}", issued.envelope
    )


def _about(command: Command) -> str:
    return f"{subject(command)} of {', '.join(scopes(command.target)) or 'nobody'}"
