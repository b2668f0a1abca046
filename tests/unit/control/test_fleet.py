"""The fleet: pages of agents, and what their reports say."""

import random

from mev.control.fleet import AgentAnswer, EnrolledAgent, Fleet
from mev.crypto.keys import SigningKey
from mev.wire.pb.control_pb2 import ACK, NACK, STATUS, Enrolment, Report

KEY = SigningKey.generate().public_key


class ReadAgents(dict[str, EnrolledAgent]):
    """Agents that note which of them are read."""

    def __init__(self, agents: dict[str, EnrolledAgent]) -> None:
        super().__init__(agents)
        self.names: list[str] = []

    def __getitem__(self, name: str) -> EnrolledAgent:
        self.names.append(name)
        return super().__getitem__(name)


def enrolment(name: str, *, at_ns: int = 1, revoked: bool = False) -> Enrolment:
    return Enrolment(
        agent_id=name, module="m", public_key=KEY, enrolled_at_ns=at_ns, revoked=revoked
    )


def fleet_of(names: list[str]) -> Fleet:
    fleet = Fleet()
    for name in names:
        assert fleet.enrol(enrolment(name))
    return fleet


def paged(fleet: Fleet, limit: int) -> list[str]:
    found: list[str] = []
    for _ in range(len(fleet.agents) + 1):
        page = fleet.page(found[-1] if found else "", limit)
        found += [agent.id for agent in page]
    return found


def test_pages_hold_every_agent_once_in_the_order_of_ids() -> None:
    names = [f"a{number:04d}" for number in range(500)]
    shuffled = random.Random(3).sample(names, len(names))
    fleet = fleet_of(shuffled)
    assert not fleet.enrol(enrolment("a0003")), "the same enrolment again"
    assert fleet.enrol(enrolment("a0003", at_ns=2))
    assert paged(fleet, 7) == names


def test_page_reads_no_agent_beyond_its_limit() -> None:
    fleet = fleet_of([f"a{number:03d}" for number in range(300)])
    fleet.agents = read = ReadAgents(fleet.agents)
    assert [agent.id for agent in fleet.page("a150", 3)] == ["a151", "a152", "a153"]
    assert read.names == ["a151", "a152", "a153"]


def test_page_after_a_revoked_agent_begins_with_the_agent_behind_it() -> None:
    fleet = fleet_of(["a", "b", "c"])
    assert fleet.enrol(enrolment("b", at_ns=2, revoked=True))
    assert paged(fleet, 1) == ["a", "c"]
    assert [agent.id for agent in fleet.page("b", 5)] == ["c"]
    assert fleet.enrol(enrolment("b", at_ns=3))
    assert paged(fleet, 1) == ["a", "b", "c"]


def test_last_answer_is_that_to_a_command_and_not_a_status_report() -> None:
    fleet = fleet_of(["a"])
    agent = fleet.agents["a"]
    for report in (
        Report(command_id="c1", result=ACK),
        Report(command_id="c2", result=NACK, reason_code="expired"),
        Report(result=STATUS),
    ):
        fleet.note(agent, report, 7)
    assert agent.last_answer == AgentAnswer(
        command_id="c2", result=NACK, reason_code="expired", arrived_at_ns=7
    )
