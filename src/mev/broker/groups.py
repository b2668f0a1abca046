"""Coordinator of consumer groups (classic protocol): members, generations and assignments."""

import asyncio
import uuid
from dataclasses import dataclass, field
from typing import NamedTuple

from mev.broker.wire import ErrorCode

_LEAST_SESSION_MS = 1_000
_LONGEST_SESSION_MS = 300_000
_LONGEST_REBALANCE_MS = 300_000
_MEMBERS = 1_000
_GROUP_ID_CHARACTERS = 255
_CLIENT_ID_CHARACTERS = 200
_MEMBER_BYTES = 1 << 10
RESTRICTED_GROUPS = 32
"""The groups of restricted users, and the groups with commits where they commit for a new one."""
_RESTRICTED_BYTES = 16 << 20


class GroupError(Exception):
    """A member's request is refused."""

    def __init__(self, code: ErrorCode) -> None:
        super().__init__(code.name)
        self.code = code


class Joined(NamedTuple):
    """The outcome of a rebalance for one member; only the leader receives `members`."""

    generation: int
    protocol: str
    leader: str
    member_id: str
    members: list[tuple[str, bytes]]


@dataclass(slots=True)
class _Member:
    id: str
    session_s: float
    rebalance_s: float
    protocols: dict[str, bytes]
    assignment: bytes = b""
    restricted_bytes: int = 0
    joining: "asyncio.Future[Joined] | None" = None
    syncing: "asyncio.Future[bytes] | None" = None
    expiry: asyncio.TimerHandle | None = None


@dataclass(slots=True)
class _Group:
    protocol_type: str
    generation: int = 0
    protocol: str = ""
    leader: str = ""
    members: dict[str, _Member] = field(default_factory=dict)
    is_restricted: bool = False
    is_preparing: bool = False
    is_assigned: bool = False
    deadline: asyncio.TimerHandle | None = None


class ConsumerGroups:
    """All consumer groups, in memory, for one event loop; members join again after a restart."""

    def __init__(self) -> None:
        self._groups: dict[str, _Group] = {}
        self._restricted_bytes = 0

    async def join(
        self,
        group_id: str,
        member_id: str,
        client_id: str,
        protocol_type: str,
        protocols: dict[str, bytes],
        *,
        session_ms: int,
        rebalance_ms: int,
        is_restricted: bool = False,
    ) -> Joined:
        """Join or rejoin, wait for the other members, and return the new generation.

        Restricted members together have few groups, and a limit of memory.

        :raises GroupError: when the member is refused, for example without a common assignor.
        """
        _check_name(group_id)
        if not _LEAST_SESSION_MS <= session_ms <= _LONGEST_SESSION_MS:
            raise GroupError(ErrorCode.INVALID_SESSION_TIMEOUT)
        group = self._groups.get(group_id) or _Group(protocol_type, is_restricted=is_restricted)
        self._check_protocols(group, member_id, protocol_type, protocols)
        if member_id and member_id not in group.members:
            raise GroupError(ErrorCode.UNKNOWN_MEMBER_ID)
        if not member_id and len(group.members) >= _MEMBERS:
            raise GroupError(ErrorCode.GROUP_MAX_SIZE_REACHED)
        member = group.members.get(member_id) or _Member(
            f"{client_id[:_CLIENT_ID_CHARACTERS]}-{uuid.uuid4()}", 0, 0, {}
        )
        if is_restricted:
            self._count(group_id, member, protocols)
        member.session_s, member.rebalance_s, member.protocols = (
            session_ms / 1000,
            min(rebalance_ms, _LONGEST_REBALANCE_MS) / 1000,
            protocols,
        )
        self._groups[group_id] = group
        group.members[member.id] = member
        if member.joining:  # it retries: its connection was lost
            member.joining.cancel()
        joining: asyncio.Future[Joined] = asyncio.get_running_loop().create_future()
        member.joining = joining
        self._rest(member)
        self._prepare(group_id, group)
        self._complete_if_all_joined(group_id, group)
        return await joining

    async def sync(
        self, group_id: str, generation: int, member_id: str, assignments: dict[str, bytes]
    ) -> bytes:
        """Store the leader's `assignments`; return this member's assignment when available.

        :raises GroupError: when the member is not in this generation, or a new rebalance has begun.
        """
        group, member = self._member(group_id, generation, member_id)
        if group.is_preparing:
            raise GroupError(ErrorCode.REBALANCE_IN_PROGRESS)
        if not group.is_assigned and member_id == group.leader:
            group.is_assigned = True
            for each in group.members.values():
                each.assignment = assignments.get(each.id, b"")
                self._watch(group_id, group, each)
                if each.syncing and not each.syncing.done():
                    each.syncing.set_result(each.assignment)
        if group.is_assigned:
            self._watch(group_id, group, member)
            return member.assignment
        self._rest(member)
        syncing: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        member.syncing = syncing
        return await syncing

    def heartbeat(self, group_id: str, generation: int, member_id: str) -> None:
        """Record a heartbeat.

        :raises GroupError: when the member has to join again.
        """
        group, member = self._member(group_id, generation, member_id)
        self._watch(group_id, group, member)
        if group.is_preparing:
            raise GroupError(ErrorCode.REBALANCE_IN_PROGRESS)

    def leave(self, group_id: str, member_id: str) -> None:
        """Remove a member at once.

        :raises GroupError: when no member has this id.
        """
        group = self._groups.get(group_id)
        if group is None or member_id not in group.members:
            raise GroupError(ErrorCode.UNKNOWN_MEMBER_ID)
        self._remove(group_id, group, member_id)

    def check_commit(self, group_id: str, generation: int, member_id: str) -> None:
        """Check that a member may commit; clients without a group may while it is empty.

        :raises GroupError: when the member is not in this generation, or the name is not valid.
        """
        _check_name(group_id)
        group = self._groups.get(group_id)
        if generation < 0 and (group is None or not group.members):
            return
        _, member = self._member(group_id, generation, member_id)
        if member.expiry is not None:
            self._watch(group_id, self._groups[group_id], member)

    def _check_protocols(
        self, group: _Group, member_id: str, protocol_type: str, protocols: dict[str, bytes]
    ) -> None:
        others = [member for member in group.members.values() if member.id != member_id]
        common = set(protocols).intersection(*(member.protocols for member in others))
        if not common or (others and group.protocol_type != protocol_type):
            raise GroupError(ErrorCode.INCONSISTENT_GROUP_PROTOCOL)
        if not others:
            group.protocol_type = protocol_type

    def _count(self, group_id: str, member: _Member, protocols: dict[str, bytes]) -> None:
        """Count the memory of a restricted member.

        :raises GroupError: when restricted members together have too much, or too many groups.
        """
        size = _MEMBER_BYTES + sum(len(name) + len(data) for name, data in protocols.items())
        total = self._restricted_bytes - member.restricted_bytes + size
        groups = sum(group.is_restricted for group in self._groups.values())
        is_new = group_id not in self._groups
        if total > _RESTRICTED_BYTES or (is_new and groups >= RESTRICTED_GROUPS):
            raise GroupError(ErrorCode.GROUP_MAX_SIZE_REACHED)
        self._restricted_bytes, member.restricted_bytes = total, size

    def _member(self, group_id: str, generation: int, member_id: str) -> tuple[_Group, _Member]:
        group = self._groups.get(group_id)
        if group is None or (member := group.members.get(member_id)) is None:
            raise GroupError(ErrorCode.UNKNOWN_MEMBER_ID)
        if generation != group.generation:
            raise GroupError(ErrorCode.ILLEGAL_GENERATION)
        return group, member

    def _prepare(self, group_id: str, group: _Group) -> None:
        """Begin a rebalance.

        Members learn of it at their next heartbeat, members waiting in sync at once.
        """
        if group.is_preparing:
            return
        group.is_preparing, group.is_assigned = True, False
        for member in group.members.values():
            if member.syncing and not member.syncing.done():
                member.syncing.set_exception(GroupError(ErrorCode.REBALANCE_IN_PROGRESS))
                self._watch(group_id, group, member)
            member.syncing = None
        patience_s = max(member.rebalance_s for member in group.members.values())
        group.deadline = asyncio.get_running_loop().call_later(
            patience_s, self._complete, group_id, group
        )

    def _complete_if_all_joined(self, group_id: str, group: _Group) -> None:
        if all(member.joining and not member.joining.done() for member in group.members.values()):
            self._complete(group_id, group)

    def _complete(self, group_id: str, group: _Group) -> None:
        """End a rebalance with the members that have joined, and remove the others."""
        if group.deadline:
            group.deadline.cancel()
        group.deadline, group.is_preparing = None, False
        for member in list(group.members.values()):
            if not member.joining or member.joining.done():
                self._drop(group, member)
        if not group.members:
            self._groups.pop(group_id, None)
            return
        group.generation += 1
        if group.leader not in group.members:
            group.leader = next(iter(group.members))
        group.protocol = self._chosen(group)
        everybody = [
            (member.id, member.protocols[group.protocol]) for member in group.members.values()
        ]
        for member in group.members.values():
            joining, member.joining = member.joining, None
            if joining is None:  # unreachable: others were removed above
                continue
            known = everybody if member.id == group.leader else []
            joining.set_result(
                Joined(group.generation, group.protocol, group.leader, member.id, known)
            )
            self._watch(group_id, group, member)

    def _chosen(self, group: _Group) -> str:
        """Return the leader's first assignor that all members support."""
        common = set.intersection(*(set(member.protocols) for member in group.members.values()))
        return next(name for name in group.members[group.leader].protocols if name in common)

    def _remove(self, group_id: str, group: _Group, member_id: str) -> None:
        self._drop(group, group.members[member_id])
        if not group.members:
            if group.deadline:
                group.deadline.cancel()
            self._groups.pop(group_id, None)
        else:
            self._prepare(group_id, group)
            self._complete_if_all_joined(group_id, group)

    def _drop(self, group: _Group, member: _Member) -> None:
        self._rest(member)
        self._restricted_bytes -= member.restricted_bytes
        del group.members[member.id]
        for waiting in (member.joining, member.syncing):
            if waiting and not waiting.done():
                waiting.set_exception(GroupError(ErrorCode.UNKNOWN_MEMBER_ID))

    def _watch(self, group_id: str, group: _Group, member: _Member) -> None:
        """Restart the session time-out, after which the member is removed."""
        self._rest(member)
        member.expiry = asyncio.get_running_loop().call_later(
            member.session_s, self._expire, group_id, group, member
        )

    def _rest(self, member: _Member) -> None:
        """Stop the session time-out while the member waits for an answer."""
        if member.expiry:
            member.expiry.cancel()
            member.expiry = None

    def _expire(self, group_id: str, group: _Group, member: _Member) -> None:
        if group.members.get(member.id) is member:
            self._remove(group_id, group, member.id)


def _check_name(group_id: str) -> None:
    """Check the name of a group, which the file of commits repeats for each partition."""
    if not 0 < len(group_id) <= _GROUP_ID_CHARACTERS:
        raise GroupError(ErrorCode.INVALID_GROUP_ID)
