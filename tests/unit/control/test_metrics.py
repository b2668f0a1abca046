"""Tests of the metrics of the fleet."""

from prometheus_client import CollectorRegistry

from mev.control.fleet import CONTROL_PLANE, Fleet
from mev.control.metrics import MAX_MODULES, OTHER_MODULES, FleetCollector
from mev.control.proposals import Proposals
from mev.wire.pb.control_pb2 import ACTIVE, NO_NEW, Enrolment, Proposal, Report, Running

NOW_NS = 1_000_000_000_000


def enrol(fleet: Fleet, agent_id: str, module: str) -> None:
    fleet.enrol(Enrolment(agent_id=agent_id, module=module, public_key=b"k" * 32, enrolled_at_ns=1))


def report(fleet: Fleet, agent_id: str, running: Running, age_s: float = 0.0) -> None:
    said = Report(agent_id=agent_id, agent_counter=1, running=running)
    fleet.note(fleet.agents[agent_id], said, NOW_NS - round(age_s * 1e9))


def registry_of(fleet: Fleet, proposals: Proposals | None = None) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(
        FleetCollector(fleet, proposals or Proposals(), silent_after_s=3, clock=lambda: NOW_NS)
    )
    return registry


def test_agents_are_counted_by_module_and_level() -> None:
    fleet = Fleet()
    for agent_id in ("a1", "a2", "a3", "a4"):
        enrol(fleet, agent_id, "arbitrage")
    enrol(fleet, "api-1", CONTROL_PLANE)
    report(fleet, "a1", Running(level=ACTIVE))
    report(fleet, "a2", Running(level=NO_NEW, stepped_down="lease"))
    report(fleet, "a3", Running(level=ACTIVE), age_s=4)
    registry = registry_of(fleet)

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"mev_agents_{name}", {"module": "arbitrage", **labels})

    assert (value("enrolled"), value("online"), value("stepped_down")) == (4, 2, 1)
    assert value("level", level="ACTIVE") == 1
    assert value("level", level="NO_NEW") == 1
    assert value("level", level="HALTED") == 0
    assert registry.get_sample_value("mev_agents_enrolled", {"module": CONTROL_PLANE}) is None


def test_modules_are_bounded() -> None:
    fleet = Fleet()
    for number in range(MAX_MODULES + 3):
        enrol(fleet, f"a{number}", f"module-{number}")
    (enrolled,) = (
        metric for metric in registry_of(fleet).collect() if metric.name == "mev_agents_enrolled"
    )
    assert len(enrolled.samples) == MAX_MODULES + 1
    assert [one.value for one in enrolled.samples if one.labels["module"] == OTHER_MODULES] == [3]


def test_waiting_proposals_are_counted() -> None:
    proposals = Proposals()
    proposals.add(Proposal(id="p1", expires_at_ns=NOW_NS + 1))
    proposals.add(Proposal(id="p2", expires_at_ns=NOW_NS - 1))
    registry = registry_of(Fleet(), proposals)
    assert registry.get_sample_value("mev_control_proposals") == 1
