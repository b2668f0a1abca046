"""Metrics of the fleet, computed when Prometheus asks; labels are bounded."""

from collections import Counter
from collections.abc import Iterator

from prometheus_client import Histogram, Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from mev.control.command_store import CommandRecord
from mev.control.fleet import CONTROL_PLANE, Fleet
from mev.control.proposals import Proposals
from mev.core.clock import Clock, now_ns
from mev.wire.pb.control_pb2 import ACK, Level

MAX_MODULES = 50
OTHER_MODULES = "other"
ANSWER_SECONDS = Histogram(
    "mev_command_answer_seconds",
    "From the acceptance of a command to an agent's answer.",
    ["result"],
    buckets=[0.001 * 2**n for n in range(18)],
)
_ACKNOWLEDGED, _REFUSED = ANSWER_SECONDS.labels("ack"), ANSWER_SECONDS.labels("nack")


def observe_answer(issued: CommandRecord, result: int, arrived_at_ns: int) -> None:
    """Observe an agent's answer that arrived just now."""
    latency_ns = max(0, arrived_at_ns - issued.command.issued_at_ns)
    (_ACKNOWLEDGED if result == ACK else _REFUSED).observe(latency_ns / 1e9)


class FleetCollector(Collector):
    """Exports the agents of `fleet` by module; the control plane's replicas are left out.

    An agent is online if it has reported within `silent_after_s`.
    """

    def __init__(
        self,
        fleet: Fleet,
        proposals: Proposals,
        *,
        silent_after_s: float,
        clock: Clock = now_ns,
    ) -> None:
        self._fleet = fleet
        self._proposals = proposals
        self._silent_after_ns = round(silent_after_s * 1e9)
        self._clock = clock

    def describe(self) -> Iterator[Metric]:
        """Yield nothing: the registry must not collect at registration."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        agents, online, levels = Counter[str](), Counter[str](), Counter[tuple[str, str]]()
        stepped_down, now = Counter[str](), self._clock()
        oldest_ns = now - self._silent_after_ns
        members = [one for one in self._fleet.agents.values() if one.module != CONTROL_PLANE]
        common = dict(Counter(one.module for one in members).most_common(MAX_MODULES))
        for agent in members:
            module = agent.module if agent.module in common else OTHER_MODULES
            agents[module] += 1
            if agent.last_seen_ns > oldest_ns:
                online[module] += 1
                levels[module, Level.Name(agent.running.level)] += 1
                stepped_down[module] += bool(agent.running.stepped_down)
        for name, text, values in (
            ("mev_agents_enrolled", "Agents that are enrolled.", agents),
            ("mev_agents_online", "Agents that report.", online),
            (
                "mev_agents_stepped_down",
                "Agents that report and went below their ordered level by themselves.",
                stepped_down,
            ),
        ):
            family = GaugeMetricFamily(name, text, labels=["module"])
            for module in agents:
                family.add_metric([module], values[module])
            yield family
        by_level = GaugeMetricFamily(
            "mev_agents_level", "Agents that report, by their level.", labels=["module", "level"]
        )
        for module in agents:
            for level in Level.keys():  # noqa: SIM118 - an enum of Protobuf is not a mapping
                by_level.add_metric([module, level], levels[module, level])
        yield by_level
        waiting = sum(one.state(now) == "pending" for one in self._proposals.pending.values())
        yield GaugeMetricFamily(
            "mev_control_proposals", "Commands that wait for an approval.", waiting
        )
