"""The fleet: enrolled agents and their last reports."""

from bisect import bisect_left, bisect_right, insort
from collections import Counter, OrderedDict
from dataclasses import dataclass, field

from mev.control.declared import Declarations, declarations
from mev.crypto.keys import default_key_id
from mev.crypto.trust import AGENT, TrustStore
from mev.wire.orders import is_for
from mev.wire.pb.control_pb2 import ACK, NACK, Enrolment, Report, Running, Target
from mev.wire.pb.envelope_pb2 import Envelope, KeySet, TrustedKey

CONTROL_PLANE = "control-plane"  # module of the control plane's replicas
MAX_AGENTS = 10_000
_REMEMBERED_REVOCATIONS = 10_000
_MOST_SAID = 100  # agents may report any text


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentAnswer:
    """An agent's answer to a command."""

    command_id: str
    result: int
    reason_code: str
    arrived_at_ns: int


@dataclass(slots=True)
class EnrolledAgent:
    """An enrolled agent, its last report and its last answer to a command."""

    enrolment: Enrolment
    trust: TrustStore = field(init=False)
    declared: Declarations = field(init=False)
    last_seen_ns: int = 0
    last_counter: int = 0
    clock_offset_ns: int = 0
    uptime_ns: int = 0
    running: Running = field(default_factory=Running)
    last_answer: AgentAnswer | None = None
    kept_ns: int = 0
    """Arrival time of its newest report in the journal."""

    def __post_init__(self) -> None:
        public_key = self.enrolment.public_key
        key = TrustedKey(key_id=default_key_id(public_key), public_key=public_key, roles=[AGENT])
        self.trust = TrustStore(KeySet(epoch=1, keys=[key]))
        self.declared = declarations(self.enrolment)

    def renew(self, enrolment: Enrolment) -> None:
        """Apply a newer enrolment with the same key."""
        self.enrolment, self.declared = enrolment, declarations(enrolment)

    @property
    def id(self) -> str:
        """Agent id."""
        return self.enrolment.agent_id

    @property
    def module(self) -> str:
        """Module: the kind of bot."""
        return self.enrolment.module


class Fleet:
    """Enrolled agents by id, and recent revocations.

    A revocation prevents a copy of an old enrolment from adding an agent back. Of two keys for one
    name the first wins, so enrolments are applied in topic order.
    """

    def __init__(self) -> None:
        self.agents: dict[str, EnrolledAgent] = {}
        self._names: list[str] = []
        """Agent ids in order."""
        self.revoked: OrderedDict[str, Enrolment] = OrderedDict()
        self.newest_ns = 0  # of all enrolments seen, also refused ones
        self._declared: dict[str, dict[str, Counter[str]]] = {}
        """By module and action, the number of agents that declare each schema."""

    def enrol(self, enrolment: Enrolment) -> bool:
        """Apply an enrolment or a revocation; return whether it is new."""
        name = enrolment.agent_id
        gone, known = self.revoked.get(name), self.agents.get(name)
        self.newest_ns = max(self.newest_ns, enrolment.enrolled_at_ns)
        if known and known.enrolment.public_key != enrolment.public_key:
            return False
        if (gone and enrolment.enrolled_at_ns <= gone.enrolled_at_ns) or (
            known and _is_old(enrolment, known.enrolment)
        ):
            return False
        if enrolment.revoked:
            self._revoke(enrolment)
        elif known:
            self._undeclare(known.enrolment)
            known.renew(enrolment)
            self._declare(enrolment)
        else:
            self.agents[name] = EnrolledAgent(enrolment)
            insort(self._names, name)
            self._declare(enrolment)
        return True

    def page(self, after: str, limit: int) -> list[EnrolledAgent]:
        """Return up to `limit` agents in the order of their ids, from the first one after `after`.

        The whole fleet is not sorted for each page: that would delay the kill switch.
        """
        start = bisect_right(self._names, after)
        return [self.agents[name] for name in self._names[start : start + limit]]

    def online(self, since_ns: int) -> set[str]:
        """Return the ids of the agents that have reported after `since_ns`."""
        return {name for name, agent in self.agents.items() if agent.last_seen_ns > since_ns}

    def modules(self) -> set[str]:
        """Return the modules that have agents."""
        return {agent.module for agent in self.agents.values()}

    def module_of(self, agent_id: str) -> str:
        """Return the module of an enrolled or revoked agent, or an empty string."""
        if (agent := self.agents.get(agent_id)) is not None:
            return agent.module
        gone = self.revoked.get(agent_id)
        return gone.module if gone is not None else ""

    def declares(self, module: str, action: str) -> bool:
        """Return whether an agent of the module declares the action."""
        return action in self._declared.get(module, {})

    def declared_actions(self, module: str) -> list[str]:
        """Return the actions that agents of the module declare."""
        return sorted(self._declared.get(module, {}))

    def conflicts(self, agent: EnrolledAgent) -> list[str]:
        """Return the agent's actions for which agents of its module declare different schemas."""
        declared = self._declared.get(agent.module, {})
        return [
            action.name
            for action in agent.enrolment.actions
            if len(declared.get(action.name, ())) > 1
        ]

    def silent_since(self, moment_ns: int) -> list[EnrolledAgent]:
        """Return the agents without a report or enrolment since `moment_ns`."""
        return [
            agent
            for agent in self.agents.values()
            if max(agent.last_seen_ns, agent.enrolment.enrolled_at_ns) < moment_ns
        ]

    def meant(self, target: Target) -> list[EnrolledAgent]:
        """Return the agents in `target`; the control plane's replicas only if they are named."""
        meant = [agent for agent in self.agents.values() if is_for(target, agent.id, agent.module)]
        return [agent for agent in meant if agent.module != CONTROL_PLANE or not target.all]

    def let_go(self, target: Target) -> list[Enrolment]:
        """Return the last declarations of the revoked agents in `target`; they may still obey."""
        gone = (one for name, one in self.revoked.items() if name not in self.agents)
        return [
            one
            for one in gone
            if one.module != CONTROL_PLANE and is_for(target, one.agent_id, one.module)
        ]

    def open_report(self, envelope: Envelope, now_ns: int) -> tuple[EnrolledAgent, Report] | None:
        """Return a report and its agent if it is new and signed by that agent's key, else None.

        :raises EnvelopeError: if the signature or the message is invalid.
        """
        claimed = Report.FromString(envelope.payload).agent_id
        agent = self.agents.get(claimed)
        if agent is None:
            return None
        report = agent.trust.open(envelope, Report, AGENT, now_ns)
        # A counter that does not increase means a replayed report.
        return (agent, report) if report.agent_counter > agent.last_counter else None

    @staticmethod
    def note(agent: EnrolledAgent, report: Report, arrived_at_ns: int) -> None:
        """Record the contents of `report` at its agent."""
        agent.last_counter = report.agent_counter
        agent.last_seen_ns = arrived_at_ns
        agent.clock_offset_ns = report.reported_at_ns - arrived_at_ns
        agent.uptime_ns = report.uptime_ns
        agent.running = report.running
        if report.command_id and report.result in {ACK, NACK}:
            agent.last_answer = AgentAnswer(
                command_id=report.command_id[:_MOST_SAID],
                result=report.result,
                reason_code=report.reason_code[:_MOST_SAID],
                arrived_at_ns=arrived_at_ns,
            )

    def _declare(self, enrolment: Enrolment) -> None:
        module = self._declared.setdefault(enrolment.module, {})
        for action in enrolment.actions:
            module.setdefault(action.name, Counter())[action.params_schema_json] += 1

    def _undeclare(self, enrolment: Enrolment) -> None:
        module = self._declared.get(enrolment.module, {})
        for action in enrolment.actions:
            schemas = module[action.name]
            schemas[action.params_schema_json] -= 1
            if not schemas[action.params_schema_json]:
                del schemas[action.params_schema_json]
            if not schemas:
                del module[action.name]
        if not module:
            self._declared.pop(enrolment.module, None)

    def _revoke(self, enrolment: Enrolment) -> None:
        if (known := self.agents.pop(enrolment.agent_id, None)) is not None:
            self._undeclare(known.enrolment)
            del self._names[bisect_left(self._names, enrolment.agent_id)]
        self.revoked[enrolment.agent_id] = enrolment
        self.revoked.move_to_end(enrolment.agent_id)
        if len(self.revoked) > _REMEMBERED_REVOCATIONS:
            self.revoked.popitem(last=False)


def _is_old(enrolment: Enrolment, known: Enrolment) -> bool:
    return enrolment.enrolled_at_ns < known.enrolled_at_ns or enrolment == known
