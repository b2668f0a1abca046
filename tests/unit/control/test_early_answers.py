"""Tests of answers that arrive before their command."""

from hypothesis import given
from hypothesis import strategies as st

from mev.control.early_answers import EarlyAnswer, EarlyAnswers
from mev.wire.pb.control_pb2 import ACK, NACK, Report, Result

MOST, MOST_BYTES = 12, 400


def answer(agent_id: str, command_id: str, size: int = 10, result: Result = ACK) -> EarlyAnswer:
    report = Report(agent_id=agent_id, command_id=command_id, result=result)
    return EarlyAnswer(report, 1, b"x" * size)


def test_agent_that_floods_loses_its_own_answers_only() -> None:
    early = EarlyAnswers(MOST, MOST_BYTES)
    for agent_id in ("a", "b", "c"):
        early.add(answer(agent_id, "order"))
    for number in range(1000):
        early.add(answer("flooding", f"c{number}", 40))
    assert [one.report.agent_id for one in early.take("order")] == ["a", "b", "c"]


def test_answer_of_a_quiet_agent_takes_the_place_of_a_flood() -> None:
    early = EarlyAnswers(MOST, MOST_BYTES)
    for number in range(MOST):
        early.add(answer("flooding", f"c{number}"))
    early.add(answer("quiet", "order"))
    assert [one.report.agent_id for one in early.take("order")] == ["quiet"]
    assert [len(early.take(f"c{number}")) for number in range(MOST)] == [0] + [1] * (MOST - 1)


def test_newest_answer_counts_and_an_acknowledgement_stays() -> None:
    early = EarlyAnswers(MOST, MOST_BYTES)
    for result in (NACK, ACK, NACK):
        early.add(answer("a", "order", result=result))
    assert [one.report.result for one in early.take("order")] == [ACK]
    assert (early.count, early.size_bytes) == (0, 0)


@given(
    st.lists(
        st.tuples(st.sampled_from("abcd"), st.sampled_from("123456"), st.integers(0, 500)),
        max_size=60,
    )
)
def test_counts_agree_with_what_is_kept(added: list[tuple[str, str, int]]) -> None:
    early = EarlyAnswers(MOST, MOST_BYTES)
    for agent_id, command_id, size in added:
        early.add(answer(agent_id, command_id, size))
        assert early.count <= MOST
        assert early.size_bytes <= MOST_BYTES
    kept = [one for command_id in "123456" for one in early.take(command_id)]
    assert {(one.report.agent_id, one.report.command_id) for one in kept} <= {
        (agent_id, command_id) for agent_id, command_id, _ in added
    }
    assert (early.count, early.size_bytes) == (0, 0)
