"""The command store: every command, its deliveries, and the active commands."""

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from operator import attrgetter

from mev.wire.orders import is_for, scopes, subject, version_key
from mev.wire.pb.control_pb2 import ACK, ACTIVE, HALTED, NACK, Command, Report, Version

KEPT_COMMANDS = 10_000
_KEPT_SETTINGS = 16
"""Commands kept for one setting and scope: agents may refuse the newest ones."""
_MARKS = 1 << 16
_MOST_SAID = 200
"""Characters kept of a reason code and of a detail: agents may report any text."""
_REFUSALS = frozenset({"bad_params", "unsupported_config", "invalid_command"})
"""Reasons that concern the setting itself, not the time or the version of its command."""


class DeliveryState(StrEnum):
    """State of a command at one agent."""

    NOT_SENT = "NOT_SENT"
    STALE = "STALE"
    SYNCED = "SYNCED"
    ERROR = "ERROR"


class Rank(IntEnum):
    """Rank of an agent's results for one command: a result replaces those of a lower rank.

    Each agent thus has at most three results for a command that must be stored.
    """

    NONE = 0
    ERROR = 1
    REFUSED = 2
    """Refused as a setting."""
    ACKNOWLEDGED = 3


@dataclass(slots=True)
class Delivery:
    """One agent's result for one command.

    `latency_ns` is measured from acceptance of the command to the arrival of the report.
    """

    agent_id: str
    result: int = 0
    reason_code: str = ""
    detail: str = ""
    arrived_at_ns: int = 0
    latency_ns: int = 0


@dataclass(slots=True)
class CommandRecord:
    """A command, its envelope, and its deliveries."""

    command: Command
    envelope: bytes
    published: bool = False
    superseded_by: str = ""
    deliveries: dict[str, Delivery] = field(default_factory=dict)
    acknowledgements: int = 0
    refusals: int = 0
    """Number of agents that refused it as a setting."""

    def state(self, delivery: Delivery) -> DeliveryState:
        """Return the state of this command at the agent of `delivery`."""
        return self._state(delivery.result)

    def counts(self, among: Set[str] | None = None) -> dict[DeliveryState, int]:
        """Return the number of agents in each state, of those in `among` only if it is given."""
        found = Counter(map(attrgetter("result"), self.deliveries.values()))
        if among is not None:  # mostly nearly all of them; counting the others is faster
            for name in self.deliveries.keys() - among:
                found[self.deliveries[name].result] -= 1
        counts = dict.fromkeys(DeliveryState, 0)
        for result, number in found.items():
            counts[self._state(result)] += number
        return counts

    @property
    def is_refused(self) -> bool:
        """Return whether it is a setting that every addressed agent refused.

        It stays in force: agents that enrol later may accept it.
        """
        return 0 < self.refusals == len(self.deliveries)

    @property
    def is_disputed(self) -> bool:
        """Return whether it is a setting that agents refused and none acknowledged.

        Others may hold it already, so it is in force, and so is the one before it.
        """
        return self.refusals > 0 and not self.acknowledgements

    def is_refused_by(self, agent_id: str) -> bool:
        """Return whether an agent refused it as a setting."""
        answer = self.deliveries.get(agent_id)
        return answer is not None and self.rank(answer.result, answer.reason_code) is Rank.REFUSED

    def count(self, delivery: Delivery, number: int) -> None:
        """Count the result of a delivery, or take it back with `number` -1."""
        match self.rank(delivery.result, delivery.reason_code):
            case Rank.ACKNOWLEDGED:
                self.acknowledgements += number
            case Rank.REFUSED:
                self.refusals += number

    def rank(self, result: int, reason_code: str) -> "Rank":
        """Return the rank of a result for this command."""
        if result == ACK:
            return Rank.ACKNOWLEDGED
        if not result:
            return Rank.NONE
        is_setting = self.command.WhichOneof("body") == "config"
        return Rank.REFUSED if is_setting and reason_code in _REFUSALS else Rank.ERROR

    def _state(self, result: int) -> DeliveryState:
        if result:
            return DeliveryState.SYNCED if result == ACK else DeliveryState.ERROR
        return DeliveryState.STALE if self.published else DeliveryState.NOT_SENT


class CommandStore:
    """Commands by id, oldest first, and the active ones by subject and scope.

    A command supersedes the older ones on its subject in its own scope and in those that it covers:
    a module covers its agents. Levels are the exception: of different scopes the lowest counts.
    `module_of` returns an agent's module, or an empty string.
    """

    def __init__(self, module_of: Callable[[str], str] = lambda _: "") -> None:
        self.commands: OrderedDict[str, CommandRecord] = OrderedDict()
        self._in_force: dict[tuple[str, str], list[str]] = {}
        self._module_of = module_of
        self.last_counter = 0
        self.revision = 0
        """Changes whenever other commands may be active, except by the passing of time."""

    def add(self, command: Command, envelope: bytes, agent_ids: list[str]) -> CommandRecord:
        """Add a command and return its record; a known command is unchanged."""
        if (known := self.commands.get(command.id)) is not None:
            return known
        issued = CommandRecord(
            command, envelope, deliveries={agent_id: Delivery(agent_id) for agent_id in agent_ids}
        )
        self.commands[command.id] = issued
        self.revision += 1
        self.saw(command.version)
        if (about := subject(command)) != "action":
            for scope in scopes(command.target):
                self._put_in_force((about, scope), command)
        self._forget_oldest()
        return issued

    def saw(self, version: Version) -> None:
        """Record a version from any replica, so that our next one is newer."""
        self.last_counter = max(self.last_counter, version.counter)

    def next_counter(self, now_ns: int, mark: int) -> int:
        """Return a counter newer than every one seen: the current time, unless the clock went back.

        Its low bits are `mark`, the number of the replica: two replicas never use the same counter.
        """
        least = max(now_ns, self.last_counter + 1)
        counter = least - least % _MARKS + mark % _MARKS
        self.last_counter = counter if counter >= least else counter + _MARKS
        return self.last_counter

    def answer(self, report: Report, arrived_at_ns: int) -> bool:
        """Record an agent's result; return whether it is new and must be stored.

        A later acknowledgement replaces an error or a missing result. A repeated error changes
        only the reason that is shown. Agents that the command does not address are ignored. Agents
        that enrolled after it are ignored too once it is not active.
        """
        issued = self.commands.get(report.command_id)
        if (
            issued is None
            or report.result not in {ACK, NACK}
            or not self._is_for(issued, report.agent_id, arrived_at_ns)
        ):
            return False
        delivery = issued.deliveries.setdefault(report.agent_id, Delivery(report.agent_id))
        reason_code = report.reason_code[:_MOST_SAID]
        before = issued.rank(delivery.result, delivery.reason_code)
        after = issued.rank(report.result, reason_code)
        is_repeat = (after, reason_code) == (before, delivery.reason_code)
        if after < before or before is Rank.ACKNOWLEDGED or is_repeat:
            return False
        issued.count(delivery, -1)
        delivery.result = report.result
        delivery.reason_code, delivery.detail = reason_code, report.detail[:_MOST_SAID]
        issued.count(delivery, 1)
        delivery.arrived_at_ns = arrived_at_ns
        delivery.latency_ns = max(0, arrived_at_ns - issued.command.issued_at_ns)
        if after > before and issued.command.WhichOneof("body") == "config":
            self._mark_superseded(issued)
            self.revision += 1
        return after > before

    def in_force(self, now_ns: int) -> list[CommandRecord]:
        """Return the active commands, oldest first: what an agent must know.

        They are the latest on each subject, and the level below one that expires.
        """
        found: dict[str, CommandRecord] = {}
        names = {scope: self._wider(scope) for _, scope in self._in_force}
        wider: dict[tuple[str, tuple[str, ...]], CommandRecord | None] = {}
        for about, scope in self._in_force:
            key = about, names[scope]  # agents of a module share the command that covers them
            if key not in wider:
                wider[key] = self._newest(*key)
            for issued in _newer(self._kept(about, scope), wider[key]):
                if not issued.command.level.until_ns or issued.command.level.until_ns > now_ns:
                    found[issued.command.id] = issued
        return sorted(found.values(), key=_version)

    def latest(self, about: str, scope: str) -> CommandRecord | None:
        """Return the latest command on a subject for a scope, or None."""
        chain = self.chain(about, scope)
        return chain[-1] if chain else None

    def latest_of(self, about: str) -> list[CommandRecord]:
        """Return the latest command on a subject for each scope that has one."""
        scopes_of = [scope for one, scope in self._in_force if one == about]
        return [issued for scope in scopes_of if (issued := self.latest(about, scope)) is not None]

    def chain(self, about: str, scope: str) -> list[CommandRecord]:
        """Return the commands on a subject and scope that may be active, newest last.

        While agents refused a setting and none acknowledged it, it is active, and so is the one
        before it.
        """
        return _newer(self._kept(about, scope), self._newest(about, self._wider(scope)))

    def held_settings(
        self, about: str, names: Iterable[str], agent_id: str
    ) -> tuple[list[CommandRecord], bool]:
        """Return the settings of these scopes that an agent may hold, newest last.

        They are the newest one that it did not refuse, and the newer ones that it refused: its key
        may be in other hands. The second value is whether it refused all of them. Without an agent
        id they are those that agents enrolled later may get.
        """
        chains = [self._in_force.get((about, name), []) for name in names]
        found = {one: self.commands[one] for chain in chains for one in chain}
        settings = sorted(found.values(), key=_version)
        for place in reversed(range(len(settings))):
            one = settings[place]
            if not (one.is_refused_by(agent_id) if agent_id else one.is_disputed):
                return settings[place:], False
        return settings, True

    def newest(self, about: str, scope: str) -> list[CommandRecord]:
        """Return the newest command for a scope and the newest for those that cover it.

        Disputed settings of the scopes that cover it are included.
        """
        wider = self._wider(scope)
        found = [*self._kept(about, scope)[-1:], self._newest(about, wider)]
        disputed = [
            issued for name in wider for issued in self.chain(about, name) if issued.is_disputed
        ]
        return [*(issued for issued in found if issued is not None), *disputed]

    def scopes_in_force(self, issued: CommandRecord) -> list[str]:
        """Return the scopes of a command in which nothing newer superseded it."""
        about = subject(issued.command)
        return [
            scope for scope in scopes(issued.command.target) if issued in self.chain(about, scope)
        ]

    def superseded_by(self, issued: CommandRecord) -> str:
        """Return the id of a command that superseded `issued`, or an empty string."""
        about, names = subject(issued.command), scopes(issued.command.target)
        if issued.superseded_by or about == "action":
            return issued.superseded_by
        wider = [self._newest(about, self._wider(scope)) for scope in names]
        newer = [one for one in wider if one is not None and _version(one) > _version(issued)]
        return newer[0].command.id if newer and len(newer) == len(names) else ""

    def superseded_at(self, issued: CommandRecord, agent_id: str) -> str:
        """Return the id of a newer command that one agent obeys instead, or an empty string."""
        about, scope = subject(issued.command), f"agent:{agent_id}"
        if about in {"action", "level"}:
            return ""
        newest = self._newest(about, (scope, *self._wider(scope)))
        is_newer = newest is not None and _version(newest) > _version(issued)
        return newest.command.id if newest is not None and is_newer else ""

    def history(self, about: str) -> list[CommandRecord]:
        """Return every stored command on a subject, newest first."""
        return [
            issued
            for issued in reversed(self.commands.values())
            if subject(issued.command) == about
        ]

    def ordered_level(self, scope: str, now_ns: int) -> int:
        """Return the level commanded for `scope`.

        Without a command it is HALTED for all; a narrower scope then adds no limit.
        """
        for issued in reversed(self.chain("level", scope)):
            level = issued.command.level
            if not level.until_ns or level.until_ns > now_ns:
                return level.level
        return HALTED if scope == "all" else ACTIVE

    def find(self, principal: str, idempotency_key: str) -> CommandRecord | None:
        """Return the command that `principal` issued under an idempotency key, or None."""
        if not idempotency_key:
            return None
        for issued in reversed(self.commands.values()):
            command = issued.command
            if command.idempotency_key == idempotency_key and command.issuer.principal == principal:
                return issued
        return None

    def _kept(self, about: str, scope: str) -> list[CommandRecord]:
        """Return the commands of a subject and scope, newest last; of settings, active ones."""
        if (ids := self._in_force.get((about, scope))) is None:
            return []
        kept = [self.commands[one] for one in ids]
        if about.startswith("config:"):
            settled = [place for place, issued in enumerate(kept) if not issued.is_disputed]
            return kept[max(settled, default=0) :]
        return kept

    def _is_for(self, issued: CommandRecord, agent_id: str, now_ns: int) -> bool:
        """Return whether the command was issued to the agent, or addresses it and is active."""
        if agent_id in issued.deliveries:
            return True
        if not is_for(issued.command.target, agent_id, self._module_of(agent_id)):
            return False
        about, scope = subject(issued.command), f"agent:{agent_id}"
        if about == "action":
            return now_ns < issued.command.expires_at_ns
        return any(issued in self.chain(about, name) for name in (scope, *self._wider(scope)))

    def _wider(self, scope: str) -> tuple[str, ...]:
        """Return the scopes that cover `scope`."""
        kind, _, name = scope.partition(":")
        if kind == "agent":
            return f"module:{self._module_of(name)}", "all"
        return ("all",) if kind == "module" else ()

    def _newest(self, about: str, names: Iterable[str]) -> CommandRecord | None:
        """Return the newest command of these scopes that supersedes older ones, or None."""
        if about == "level":
            return None
        found = [
            issued
            for scope in names
            for issued in self._kept(about, scope)
            if self._is_lasting(issued.command) and not issued.is_disputed
        ]
        return max(found, key=_version, default=None)

    def _put_in_force(self, key: tuple[str, str], command: Command) -> None:
        """Insert a command by its version, so that replicas get the same result in any order."""
        chain = sorted([*self._in_force.get(key, []), command.id], key=self._order)
        place = chain.index(command.id)
        if place:
            self.commands[chain[place - 1]].superseded_by = command.id
        if command.id != chain[-1]:
            self.commands[command.id].superseded_by = chain[place + 1]
        if command.WhichOneof("body") == "config":
            self._in_force[key] = chain[-_KEPT_SETTINGS:]
            return
        # An expiring level returns to the one before it; a policy stays active until the next
        # begins.
        lasting = [
            index for index, one in enumerate(chain) if self._is_lasting(self.commands[one].command)
        ]
        self._in_force[key] = chain[max(lasting, default=0) :]

    def _mark_superseded(self, setting: CommandRecord) -> None:
        """Update the command before a setting whose answers may have changed its state."""
        for scope in scopes(setting.command.target):
            chain = self._in_force.get((subject(setting.command), scope), [])
            if setting.command.id in chain and (place := chain.index(setting.command.id)):
                before = self.commands[chain[place - 1]]
                before.superseded_by = "" if setting.is_disputed else setting.command.id

    def _order(self, command_id: str) -> tuple[tuple[int, int], str]:
        return version_key(self.commands[command_id].command.version), command_id

    @staticmethod
    def _is_lasting(command: Command) -> bool:
        return not (
            command.level.until_ns or command.policy.effective_from_ns > command.issued_at_ns
        )

    def _forget_oldest(self) -> None:
        needed = {one for chain in self._in_force.values() for one in chain}
        for one in list(self.commands):
            if len(self.commands) <= KEPT_COMMANDS:
                return
            if one not in needed:
                del self.commands[one]


def _newer(kept: list[CommandRecord], wider: CommandRecord | None) -> list[CommandRecord]:
    """Return those of `kept` that `wider`, which covers their scope, does not supersede."""
    if wider is None:
        return kept
    return [issued for issued in kept if _version(issued) > _version(wider)]


def _version(issued: CommandRecord) -> tuple[int, int]:
    return version_key(issued.command.version)
