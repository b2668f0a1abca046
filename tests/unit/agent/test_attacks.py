"""Each attack on the control channel: what an agent says to it, and that it changes nothing."""

from collections.abc import Callable

import pytest

from mev.agent.level import Level
from mev.crypto.envelope import seal
from mev.crypto.keys import SigningKey
from mev.wire.pb.control_pb2 import Command, ModuleAction, SetLevel, Target, Version
from mev.wire.pb.envelope_pb2 import Envelope
from tests.unit.agent.plane import ME, MODULE, SECOND, Bench


def stop(bench: Bench) -> Command:
    return bench.plane.level(Level.HALTED)


def unsigned(bench: Bench) -> bytes:
    envelope = Envelope.FromString(bench.plane.sealed(stop(bench)))
    del envelope.signatures[:]
    return envelope.SerializeToString()


def tampered(bench: Bench) -> bytes:
    envelope = Envelope.FromString(bench.plane.sealed(stop(bench)))
    envelope.payload = envelope.payload[:-1] + bytes([envelope.payload[-1] ^ 1])
    return envelope.SerializeToString()


def wrong_key(bench: Bench) -> bytes:
    return seal(stop(bench), SigningKey.generate("thief")).SerializeToString()


def borrowed_name(bench: Bench) -> bytes:
    return seal(stop(bench), SigningKey.generate(bench.plane.key.key_id)).SerializeToString()


def root_key(bench: Bench) -> bytes:
    return seal(stop(bench), bench.plane.root).SerializeToString()


def model_key(bench: Bench) -> bytes:
    """A key that signs manifests of models orders nothing."""
    return seal(stop(bench), bench.plane.model_key).SerializeToString()


def other_payload_type(bench: Bench) -> bytes:
    """The signature is good, for another kind of message with the same bytes."""
    envelope = Envelope.FromString(bench.plane.sealed(stop(bench)))
    envelope.payload_type = envelope.payload_type.replace("command", "lease")
    return envelope.SerializeToString()


def unexpected_payload_type(bench: Bench) -> bytes:
    return bench.plane.sealed(SetLevel(level="HALTED"))


@pytest.mark.parametrize(
    ("forge", "code"),
    [
        (unsigned, "malformed_envelope"),
        (tampered, "bad_signature"),
        (wrong_key, "unknown_key"),
        (borrowed_name, "bad_signature"),
        (root_key, "key_without_role"),
        (model_key, "key_without_role"),
        (other_payload_type, "bad_signature"),
        (unexpected_payload_type, "wrong_payload_type"),
        (lambda _: b"no envelope at all", "malformed_envelope"),
        (lambda _: b"", "malformed_envelope"),
    ],
)
def test_a_forged_command_is_refused_under_its_own_name(
    bench: Bench, forge: Callable[[Bench], bytes], code: str
) -> None:
    bench.activate()
    state = bench.processor.state
    assert bench.send_bytes(forge(bench)) == [code]
    assert bench.processor.state == state
    assert bench.level() == Level.ACTIVE


def test_a_forgery_is_not_reported_as_an_answer_to_the_command_that_it_claims_to_be(
    bench: Bench,
) -> None:
    bench.send_bytes(wrong_key(bench))
    ((command_id, answer),) = bench.reports
    assert command_id == ""
    assert "claims to be command 'SetLevel-" in answer.detail


def test_a_flood_of_forgeries_is_answered_now_and_then(bench: Bench) -> None:
    forged = wrong_key(bench)
    assert sum(len(bench.send_bytes(forged)) for _ in range(1000)) == 5
    bench.clock.advance(10)
    assert bench.send_bytes(forged) == ["unknown_key"]
    assert "995 more were not reported" in bench.reports[-1][1].detail


def test_a_flood_of_good_old_messages_is_answered_now_and_then(bench: Bench) -> None:
    first, second = (bench.plane.sealed(bench.plane.level(Level.NO_NEW)) for _ in range(2))
    assert bench.send_bytes(first) + bench.send_bytes(second) == ["", ""]
    assert [code for _ in range(500) for code in bench.send_bytes(first)] == ["rolled_back"]
    assert len([code for _ in range(500) for code in bench.send_bytes(second)]) == 50


def test_a_revoked_key_signs_nothing_any_more(bench: Bench) -> None:
    bench.activate()
    stolen = bench.plane.key
    assert bench.send_bytes(bench.plane.rotate()) == []
    assert bench.processor.trust.epoch == 2
    assert bench.send_bytes(seal(stop(bench), stolen).SerializeToString()) == ["unknown_key"]
    assert bench.level() == Level.ACTIVE
    bench.restart()
    assert bench.processor.trust.epoch == 2


def test_a_key_set_without_the_root_key_is_refused(bench: Bench) -> None:
    bench.plane.root = SigningKey.generate("root")
    assert bench.send_bytes(bench.plane.rotate()) == ["bad_signature"]
    assert bench.processor.trust.epoch == 1


def test_a_replay_does_nothing_and_is_acknowledged_again(bench: Bench) -> None:
    action = ModuleAction(module=MODULE, action="set_min_profit", params_json='{"lamports": 5}')
    replayed = bench.plane.sealed(bench.plane.command(action))
    assert bench.send_bytes(replayed) == [""]
    assert bench.send_bytes(replayed) == [""]
    assert bench.reports[0] == bench.reports[1]
    assert len(bench.strategy.done) == 1


def test_an_older_version_is_rolled_back(bench: Bench) -> None:
    permission = bench.plane.sealed(bench.plane.level(Level.ACTIVE))
    bench.send_bytes(permission)
    bench.send(bench.plane.lease())
    bench.send(stop(bench))
    assert bench.send_bytes(permission) == ["rolled_back"]
    assert bench.level() == Level.HALTED


def test_an_older_version_is_rolled_back_after_a_restart(bench: Bench) -> None:
    permission = bench.plane.sealed(bench.plane.level(Level.ACTIVE))
    bench.send_bytes(permission)
    bench.send(stop(bench))
    bench.restart()
    bench.send(bench.plane.lease())
    assert bench.send_bytes(permission) == ["rolled_back"]
    assert bench.level() == Level.HALTED


def test_another_command_of_the_same_version_is_rolled_back(bench: Bench) -> None:
    command = bench.plane.level(Level.NO_NEW)
    bench.send(command)
    command.id, command.level.level = "another", Level.ACTIVE.name  # type: ignore[assignment]
    assert bench.send(command) == ["rolled_back"]


def test_an_old_lease_does_not_return(bench: Bench) -> None:
    bench.activate()
    long = bench.plane.sealed(bench.plane.lease(seconds=200))
    bench.send_bytes(long)
    bench.send(bench.plane.lease(seconds=1))
    assert bench.send_bytes(long) == []
    assert bench.wait(2) == Level.NO_NEW


def test_a_late_command_is_expired(bench: Bench) -> None:
    bench.activate()
    late = bench.plane.command(SetLevel(level="HALTED"), expires_s=5)
    envelope = bench.plane.sealed(late)
    bench.clock.advance(7.1)
    assert bench.send_bytes(envelope) == ["expired"]
    assert bench.level() == Level.ACTIVE


def test_a_command_within_the_clock_skew_is_not_late(bench: Bench) -> None:
    envelope = bench.plane.sealed(bench.plane.command(SetLevel(level="HALTED"), expires_s=5))
    bench.clock.advance(6.9)
    assert bench.send_bytes(envelope) == [""]


def test_a_command_without_an_end_is_expired(bench: Bench) -> None:
    endless = stop(bench)
    endless.expires_at_ns = 0
    assert bench.send(endless) == ["expired"]


@pytest.mark.parametrize(
    "target", [Target(agent_ids=["a2"]), Target(modules=["liquidation"]), Target()]
)
def test_a_command_for_others_is_passed_over(bench: Bench, target: Target) -> None:
    bench.activate()
    assert bench.send(bench.plane.level(Level.HALTED, target)) == []
    assert bench.level() == Level.ACTIVE


def test_an_action_of_another_module_is_refused_when_it_names_this_agent(bench: Bench) -> None:
    action = ModuleAction(module="liquidation", action="cancel_all")
    assert bench.send(bench.plane.command(action, Target(agent_ids=[ME]))) == ["wrong_target"]
    assert bench.send(bench.plane.command(action)) == []
    assert not bench.strategy.done


def test_fast_forward_ends_with_the_key_that_did_it(bench: Bench) -> None:
    """An attacker signs the highest version; nothing newer follows until the keys are rotated."""
    highest = bench.plane.command(
        SetLevel(level="HALTED"), version=Version(epoch=1, counter=2**64 - 1)
    )
    assert bench.send(highest) == [""]
    assert bench.send(bench.plane.lease(version=Version(epoch=1, counter=2**64 - 1))) == []
    assert bench.send(bench.plane.level(Level.ACTIVE)) == ["rolled_back"]
    bench.send_bytes(bench.plane.rotate())
    bench.activate()


def test_a_thief_cannot_forestall_the_next_epoch(bench: Bench) -> None:
    future = bench.plane.command(
        SetLevel(level="HALTED"), version=Version(epoch=2**64 - 1, counter=1)
    )
    assert bench.send(future) == ["unknown_epoch"]
    assert bench.send(bench.plane.lease(version=Version(epoch=2, counter=1))) == []
    assert bench.processor.state.lease.expires_at_ns is None
    snapshot = bench.plane.snapshot()
    snapshot.version.epoch = 2
    assert bench.send(snapshot) == ["stale_snapshot"]
    bench.send_bytes(bench.plane.rotate())
    bench.activate()


def test_a_stale_snapshot_says_nothing(bench: Bench) -> None:
    snapshot = bench.plane.sealed(bench.plane.snapshot(bench.plane.level(Level.ACTIVE)))
    bench.clock.advance(61)
    assert bench.send_bytes(snapshot) == ["stale_snapshot"]
    assert not bench.processor.state.accepted


def test_an_older_snapshot_is_refused(bench: Bench) -> None:
    older = bench.plane.sealed(bench.plane.snapshot(bench.plane.level(Level.ACTIVE)))
    bench.send(bench.plane.snapshot())
    assert bench.send_bytes(older) == ["stale_snapshot"]
    assert not bench.processor.state.accepted


def test_a_forged_command_in_a_good_snapshot_is_refused_alone(bench: Bench) -> None:
    forged = seal(stop(bench), SigningKey.generate("thief"))
    assert bench.send(bench.plane.snapshot(forged, bench.plane.level(Level.ACTIVE))) == [
        "",
        "unknown_key",
    ]
    assert bench.processor.standing().ordered == Level.ACTIVE


def test_a_lease_longer_than_allowed_is_cut(bench: Bench) -> None:
    bench.activate()
    bench.send(bench.plane.lease(seconds=10**9))
    lease = bench.processor.state.lease.expires_at_ns
    assert lease == bench.clock() + 300 * SECOND
