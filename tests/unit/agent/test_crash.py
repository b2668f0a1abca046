"""Tests of crashes at the worst moment: no replayed command, no reused report number."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mev.agent.folder import AgentFolder, AgentRunsError, DurableCounter, InvalidAgentIdError
from mev.agent.level import Level
from mev.agent.state import AgentState, StateCorruptedError, from_json, to_json
from mev.wire.pb.control_pb2 import ModuleAction, SetConfig, SetPolicy
from tests.unit.agent.plane import ME, MODULE, SECOND, Bench

ROOT = Path(__file__).parents[3]
DIES = """
import os, signal, sys
from pathlib import Path
from mev.agent.folder import AgentFolder, DurableCounter
from mev.agent.model_source import ModelFolder
from tests.unit.agent.plane import Bench, Clock

folder, now_ns, moment = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
counter = DurableCounter(folder / "counter")
print(counter.next(), counter.next(), counter.next(), flush=True)
save = AgentFolder.save

def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)

def killed(self, state):
    if moment == "before": die()
    save(self, state)
    if moment == "after": die()

bench = Bench(folder, Clock(now_ns), models=ModelFolder(folder.parent / "models"))
AgentFolder.save = killed
bench.send_bytes(sys.stdin.buffer.read())
"""


def die(bench: Bench, envelope: bytes, moment: str) -> list[int]:
    """Kill another process while it stores `envelope`; return the report numbers it used."""
    command = [sys.executable, "-c", DIES, str(bench.folder), str(bench.clock()), moment]
    done = subprocess.run(
        command, input=envelope, capture_output=True, cwd=ROOT, timeout=30, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    return [int(number) for number in done.stdout.split()]


def test_killed_between_disk_and_effect_it_holds_what_it_accepted(bench: Bench) -> None:
    bench.activate()
    older = bench.plane.sealed(bench.plane.level(Level.NO_NEW))
    newer = bench.plane.level(Level.HALTED)
    die(bench, bench.plane.sealed(newer), "after")
    bench.reports.clear()
    bench.restart()
    assert bench.level() == Level.HALTED
    assert bench.send_bytes(older) == ["rolled_back"]
    assert bench.level() == Level.HALTED
    command_id, answer = bench.reports[0]
    assert (command_id, answer.reason_code) == (newer.id, "")


def test_killed_before_the_disk_it_never_took_it(bench: Bench) -> None:
    bench.activate()
    newer = bench.plane.sealed(bench.plane.level(Level.HALTED))
    die(bench, newer, "before")
    bench.restart()
    assert bench.level() == Level.ACTIVE
    assert bench.send_bytes(newer) == [""]
    assert bench.level() == Level.HALTED


def test_an_action_that_was_cut_short_is_not_done_again_and_not_called_done(bench: Bench) -> None:
    action = bench.plane.command(ModuleAction(module=MODULE, action="cancel_all"))
    die(bench, bench.plane.sealed(action), "after")
    bench.restart()
    assert [(command_id, answer.reason_code) for command_id, answer in bench.reports] == [
        (action.id, "interrupted")
    ]
    assert bench.send(action) == ["interrupted"]
    assert not bench.strategy.done


def test_report_numbers_never_come_again(bench: Bench) -> None:
    envelope = bench.plane.sealed(bench.plane.level(Level.HALTED))
    first, second = (die(bench, envelope, "before") for _ in range(2))
    third = [DurableCounter(bench.folder / "counter").next()]
    assert first == [1, 2, 3]
    assert max(first) < min(second)
    assert max(second) < min(third)


def test_a_command_that_is_known_to_be_answered_is_not_answered_again(bench: Bench) -> None:
    command = bench.plane.level(Level.ACTIVE)
    bench.send(command)
    bench.processor.note_reported({command.id})
    bench.processor.refresh()
    state = bench.processor.pending_save()
    assert state is not None
    bench.processor.save(state)
    bench.reports.clear()
    bench.restart()
    bench.send(bench.plane.snapshot(command))
    assert bench.reports == []


def test_a_command_whose_answer_may_be_lost_is_answered_again(bench: Bench) -> None:
    command = bench.plane.level(Level.ACTIVE)
    bench.send(command)
    bench.reports.clear()
    bench.restart()
    assert [(command_id, answer.reason_code) for command_id, answer in bench.reports] == [
        (command.id, "")
    ]


def test_what_is_in_force_is_given_to_the_strategy_again(bench: Bench) -> None:
    bench.activate()
    bench.send(
        bench.plane.command(SetConfig(config_key="pace", config_value_json="2.5", hot_reload=False))
    )
    policy = SetPolicy(
        policy_id="p", policy_type="risk", thresholds={"min_profit_lamports": 10}, enabled=True
    )
    bench.send(bench.plane.command(policy))
    assert bench.strategy.configured == []
    bench.restart()
    assert bench.strategy.configured == [("pace", 2.5)]
    assert bench.strategy.levels == [Level.ACTIVE]
    assert set(bench.processor.running().policies) == {"p"}


def test_a_snapshot_brings_what_was_missed(bench: Bench) -> None:
    bench.activate()
    lasting, ending = bench.plane.level(Level.NO_NEW), bench.plane.level(Level.HALTED, until_s=50)
    late = bench.plane.snapshot(ending, lasting)
    assert bench.send(late) == ["", ""]
    bench.send(bench.plane.lease(seconds=100))
    assert [bench.level(), bench.wait(50)] == [Level.HALTED, Level.NO_NEW]


def test_commands_of_a_snapshot_need_not_be_fresh(bench: Bench) -> None:
    command = bench.plane.level(Level.ACTIVE)
    bench.clock.advance(3600)
    assert bench.send(bench.plane.snapshot(command)) == [""]


def test_a_policy_waits_for_its_time(bench: Bench) -> None:
    bench.send(bench.plane.command(SetPolicy(policy_id="p", policy_type="risk", enabled=True)))
    before = bench.processor.running().policies["p"]
    due_ns = bench.clock() + 60 * SECOND
    later = SetPolicy(
        policy_id="p", policy_type="risk", rules=[], enabled=False, effective_from_ns=due_ns
    )
    bench.send(bench.plane.command(later))
    bench.restart()
    assert bench.processor.running().policies["p"] == before
    assert bench.processor.next_change_ns() == due_ns
    bench.wait(60)
    assert bench.processor.running().policies["p"].counter > before.counter


def test_state_reads_as_it_was_written(bench: Bench) -> None:
    bench.activate()
    bench.send(bench.plane.level(Level.NO_NEW, until_s=5))
    bench.wait(20)
    state = bench.processor.state
    assert from_json(to_json(state)) == state


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b'{"format": 2}', b"\xff", b'{"format": 1, "key_set": 5}']
)
def test_a_state_that_cannot_be_read_is_not_begun_anew(tmp_path: Path, content: bytes) -> None:
    folder = AgentFolder(tmp_path, ME)
    folder.acquire()
    (folder.path / "state.json").write_bytes(content)
    with pytest.raises(StateCorruptedError, match=r"state\.json"):
        folder.load()
    folder.release()


def test_a_folder_has_one_owner(tmp_path: Path) -> None:
    first, second = AgentFolder(tmp_path, ME), AgentFolder(tmp_path, ME)
    first.acquire()
    with pytest.raises(AgentRunsError):
        second.acquire()
    first.release()
    second.acquire()
    assert second.key().public_key == first.key().public_key
    second.release()


@pytest.mark.parametrize("name", ["", "..", "a/b", ".hidden", "a" * 65, "a b"])
def test_an_id_is_a_plain_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidAgentIdError):
        AgentFolder(tmp_path, name)


def test_a_new_agent_has_no_state(tmp_path: Path) -> None:
    assert AgentFolder(tmp_path, ME).load() is None
    assert AgentState(key_set=b"").accepted == {}
