"""The fleet: who may report, and what each one last said of itself."""

from collections import OrderedDict
from dataclasses import dataclass, field

from mev.crypto.keys import default_key_id
from mev.crypto.trust import AGENT, TrustStore
from mev.wire.orders import is_for
from mev.wire.pb.control_pb2 import Enrolment, Report, Running, Target
from mev.wire.pb.envelope_pb2 import Envelope, KeySet, TrustedKey

CONTROL_PLANE = "control-plane"  # the module of the control plane's own replicas
MAX_AGENTS = 10_000
_REMEMBERED_REVOCATIONS = 10_000


@dataclass(slots=True)
class Agent:
    """An enrolled agent and its last report."""

    enrolment: Enrolment
    trust: TrustStore = field(init=False)
    last_seen_ns: int = 0
    last_counter: int = 0
    clock_offset_ns: int = 0
    uptime_ns: int = 0
    running: Running = field(default_factory=Running)
    kept_ns: int = 0
    """When its newest report that is in the journal arrived."""

    def __post_init__(self) -> None:
        public_key = self.enrolment.public_key
        key = TrustedKey(key_id=default_key_id(public_key), public_key=public_key, roles=[AGENT])
        self.trust = TrustStore(KeySet(epoch=1, keys=[key]))

    @property
    def id(self) -> str:
        """Its name."""
        return self.enrolment.agent_id

    @property
    def module(self) -> str:
        """What kind of bot it is."""
        return self.enrolment.module


class Fleet:
    """Every enrolled agent by id, and the newest revocations: a copy of an old enrolment must not bring an agent back.

    Of two keys that want one name the first has it; so enrolments are applied in the order in which the topic has them.
    """

    def __init__(self) -> None:
        self.agents: dict[str, Agent] = {}
        self.revoked: OrderedDict[str, Enrolment] = OrderedDict()
        self.newest_ns = 0  # of all enrolments seen, whoever got the name

    def enrol(self, enrolment: Enrolment) -> bool:
        """Take an agent in, or let one go whose enrolment is revoked; say whether that is news."""
        name = enrolment.agent_id
        gone, known = self.revoked.get(name), self.agents.get(name)
        self.newest_ns = max(self.newest_ns, enrolment.enrolled_at_ns)
        if known and known.enrolment.public_key != enrolment.public_key:
            return False
        if (gone and enrolment.enrolled_at_ns <= gone.enrolled_at_ns) or (known and _is_old(enrolment, known.enrolment)):
            return False
        if enrolment.revoked:
            self._revoke(enrolment)
        elif known:
            known.enrolment = enrolment
        else:
            self.agents[name] = Agent(enrolment)
        return True

    def silent_since(self, moment_ns: int) -> list[Agent]:
        """Return the agents that gave no sign of life since `moment_ns`; being enrolled is one."""
        return [agent for agent in self.agents.values() if max(agent.last_seen_ns, agent.enrolment.enrolled_at_ns) < moment_ns]

    def meant(self, target: Target) -> list[Agent]:
        """Return the agents that `target` means; the control plane's own replicas only when they are named."""
        meant = [agent for agent in self.agents.values() if is_for(target, agent.id, agent.module)]
        return [agent for agent in meant if agent.module != CONTROL_PLANE or not target.all]

    def open_report(self, envelope: Envelope, now_ns: int) -> tuple[Agent, Report] | None:
        """Return a report and its agent when it is new and signed by that agent's key.

        :raises EnvelopeError: when the signature or the form is wrong.
        """
        claimed = Report.FromString(envelope.payload).agent_id
        agent = self.agents.get(claimed)
        if agent is None:
            return None
        report = agent.trust.open(envelope, Report, AGENT, now_ns)
        # A counter that does not grow is a copy of an old report.
        return (agent, report) if report.agent_counter > agent.last_counter else None

    @staticmethod
    def note(agent: Agent, report: Report, arrived_at_ns: int) -> None:
        """Keep what `report` says of its agent."""
        agent.last_counter = report.agent_counter
        agent.last_seen_ns = arrived_at_ns
        agent.clock_offset_ns = report.reported_at_ns - arrived_at_ns
        agent.uptime_ns = report.uptime_ns
        agent.running = report.running

    def _revoke(self, enrolment: Enrolment) -> None:
        self.agents.pop(enrolment.agent_id, None)
        self.revoked[enrolment.agent_id] = enrolment
        self.revoked.move_to_end(enrolment.agent_id)
        if len(self.revoked) > _REMEMBERED_REVOCATIONS:
            self.revoked.popitem(last=False)


def _is_old(enrolment: Enrolment, known: Enrolment) -> bool:
    return enrolment.enrolled_at_ns < known.enrolled_at_ns or enrolment == known
