"""The ledger: every command, who has answered it, which ones are in force."""

from collections import OrderedDict
from dataclasses import dataclass, field
from enum import StrEnum

from mev.wire.orders import order, scopes, subject
from mev.wire.pb.control_pb2 import ACK, ACTIVE, HALTED, NACK, Command, Report, Version

KEPT_COMMANDS = 10_000
_MARKS = 1 << 16


class State(StrEnum):
    """What is known of a command at one agent."""

    NOT_SENT = "NOT_SENT"
    STALE = "STALE"
    SYNCED = "SYNCED"
    ERROR = "ERROR"


@dataclass(slots=True)
class Delivery:
    """One agent's answer to one command; `latency_ns` is from acceptance to the report's arrival."""

    agent_id: str
    result: int = 0
    reason_code: str = ""
    detail: str = ""
    arrived_at_ns: int = 0
    latency_ns: int = 0


@dataclass(slots=True)
class Issued:
    """A command, its envelope, and the answers to it."""

    command: Command
    envelope: bytes
    published: bool = False
    superseded_by: str = ""
    deliveries: dict[str, Delivery] = field(default_factory=dict)

    def state(self, delivery: Delivery) -> State:
        """Return what is known of this command at `delivery`'s agent."""
        if delivery.result:
            return State.SYNCED if delivery.result == ACK else State.ERROR
        return State.STALE if self.published else State.NOT_SENT


class Ledger:
    """Commands by id, oldest first, and by subject and scope the one in force."""

    def __init__(self) -> None:
        self.commands: OrderedDict[str, Issued] = OrderedDict()
        self._in_force: dict[tuple[str, str], list[str]] = {}
        self.last_counter = 0

    def add(self, command: Command, envelope: bytes, agent_ids: list[str]) -> Issued:
        """Take a command in; one that is known is returned as it is."""
        if (known := self.commands.get(command.id)) is not None:
            return known
        issued = Issued(command, envelope, deliveries={agent_id: Delivery(agent_id) for agent_id in agent_ids})
        self.commands[command.id] = issued
        self.saw(command.version)
        if (about := subject(command)) != "action":
            for scope in scopes(command.target):
                self._put_in_force((about, scope), command)
        self._forget_oldest()
        return issued

    def saw(self, version: Version) -> None:
        """Note a version that somebody gave, so that the next one of ours is newer."""
        self.last_counter = max(self.last_counter, version.counter)

    def next_counter(self, now_ns: int, mark: int) -> int:
        """Return a counter newer than every one seen: the time of day, unless that went back. It ends in the `mark` of who gives it:
        whatever two replicas do at the same moment, they never give the same one.
        """
        least = max(now_ns, self.last_counter + 1)
        counter = least - least % _MARKS + mark % _MARKS
        self.last_counter = counter if counter >= least else counter + _MARKS
        return self.last_counter

    def answer(self, report: Report, arrived_at_ns: int) -> bool:
        """Note an agent's answer, and say whether it is news. Who returns and obeys turns an error or silence into obedience."""
        issued = self.commands.get(report.command_id)
        if issued is None or report.result not in {ACK, NACK}:
            return False
        delivery = issued.deliveries.setdefault(report.agent_id, Delivery(report.agent_id))
        if delivery.result == ACK or (delivery.result, delivery.reason_code) == (report.result, report.reason_code):
            return False
        delivery.result = report.result
        delivery.reason_code, delivery.detail = report.reason_code, report.detail
        delivery.arrived_at_ns = arrived_at_ns
        delivery.latency_ns = max(0, arrived_at_ns - issued.command.issued_at_ns)
        return True

    def in_force(self, now_ns: int) -> list[Issued]:
        """Return the commands an agent must know, oldest first: the latest on each subject, and the level below one that ends."""
        ids = {one for chain in self._in_force.values() for one in self._still_needed(chain, now_ns)}
        return sorted((self.commands[one] for one in ids), key=lambda issued: order(issued.command.version))

    def latest(self, about: str, scope: str) -> Issued | None:
        """Return the latest command on a subject for a scope."""
        chain = self._in_force.get((about, scope))
        return self.commands[chain[-1]] if chain else None

    def history(self, about: str) -> list[Issued]:
        """Return every kept command on a subject, newest first."""
        return [issued for issued in reversed(self.commands.values()) if subject(issued.command) == about]

    def ordered_level(self, scope: str, now_ns: int) -> int:
        """Return the level ordered for `scope`: without an order, nothing is allowed for all, and a narrower scope adds no limit."""
        for one in reversed(self._in_force.get(("level", scope), [])):
            level = self.commands[one].command.level
            if not level.until_ns or level.until_ns > now_ns:
                return level.level
        return HALTED if scope == "all" else ACTIVE

    def find(self, principal: str, idempotency_key: str) -> Issued | None:
        """Return the command that `principal` issued under an idempotency key."""
        if not idempotency_key:
            return None
        for issued in reversed(self.commands.values()):
            command = issued.command
            if command.idempotency_key == idempotency_key and command.issuer.principal == principal:
                return issued
        return None

    def _put_in_force(self, key: tuple[str, str], command: Command) -> None:
        """Put a command where its version belongs: replicas that see two in different orders come to the same."""
        chain = sorted([*self._in_force.get(key, []), command.id], key=self._order)
        place = chain.index(command.id)
        if place:
            self.commands[chain[place - 1]].superseded_by = command.id
        if command.id != chain[-1]:
            self.commands[command.id].superseded_by = chain[place + 1]
        # A level that ends by itself returns to the one before it, which therefore stays known.
        first = max((index for index, one in enumerate(chain) if self._is_lasting(one)), default=0)
        self._in_force[key] = chain[first:]

    def _order(self, command_id: str) -> tuple[tuple[int, int], str]:
        return order(self.commands[command_id].command.version), command_id

    def _is_lasting(self, command_id: str) -> bool:
        command = self.commands[command_id].command
        return command.WhichOneof("body") != "level" or not command.level.until_ns

    def _still_needed(self, chain: list[str], now_ns: int) -> list[str]:
        needed: list[str] = []
        for one in chain:
            until_ns = self.commands[one].command.level.until_ns
            if not until_ns or until_ns > now_ns:
                needed.append(one)
        return needed

    def _forget_oldest(self) -> None:
        needed = {one for chain in self._in_force.values() for one in chain}
        for one in list(self.commands):
            if len(self.commands) <= KEPT_COMMANDS:
                return
            if one not in needed:
                del self.commands[one]
