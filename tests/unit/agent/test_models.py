"""Tests of model swaps: refusals by code, acceptance after loading, restarts, both roles."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mev.agent.model_source import ModelFolder
from mev.agent.scoring import score
from mev.crypto.keys import SigningKey
from mev.wire.features import OPPORTUNITY
from mev.wire.pb.control_pb2 import PRODUCTION, SHADOW, Command, ModelUse, SwapModel, Target
from tests.unit.agent.models import Gate, Shelf, opportunities, scores
from tests.unit.agent.plane import Bench
from tests.unit.agent.test_crash import die


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "agents", models=ModelFolder(tmp_path / "models"))


@pytest.fixture
def shelf(bench: Bench, tmp_path: Path) -> Shelf:
    return Shelf(tmp_path / "models", bench.plane.model_key)


def swap(bench: Bench, model: SwapModel) -> list[str]:
    return bench.send(bench.plane.command(model))


def running(bench: Bench) -> list[str]:
    """Return the id of the model in each role."""
    return [bench.active_models.model_id(PRODUCTION), bench.active_models.model_id(SHADOW)]


def test_each_role_has_a_model_of_its_own(bench: Bench, shelf: Shelf) -> None:
    first, second = shelf.add(1), shelf.add(2, SHADOW, share=0.25)
    assert swap(bench, first) + swap(bench, second) == ["", ""]
    assert running(bench) == [first.model_id, second.model_id]
    assert (
        bench.reports[-1][1].detail
        == f"model {second.model_id[:12]} scores 0.25 of the opportunities"
    )
    said = bench.processor.running()
    assert (said.model_id, said.model_version, said.model_sha256) == (
        first.model_id,
        "v1",
        first.sha256,
    )
    assert [(use.role, use.model_id, use.sha256) for use in said.models] == [
        (PRODUCTION, first.model_id, first.sha256),
        (SHADOW, second.model_id, second.sha256),
    ]


def test_a_role_is_emptied_alone(bench: Bench, shelf: Shelf) -> None:
    first, second = shelf.add(1), shelf.add(2, SHADOW)
    swap(bench, first)
    swap(bench, second)
    assert swap(bench, SwapModel(role=PRODUCTION)) == [""]
    assert running(bench) == ["", second.model_id]
    assert bench.processor.running().model_id == ""
    bench.restart()
    assert running(bench) == ["", second.model_id]


def strange(shelf: Shelf) -> SwapModel:
    return shelf.add(1, key=SigningKey.generate("thief"))


def other_features(shelf: Shelf) -> SwapModel:
    return shelf.add(1, feature_schema="opportunity.v0")


def other_hash(shelf: Shelf) -> SwapModel:
    return shelf.add(1, feature_schema_hash="0" * 64)


def other_scores(shelf: Shelf) -> SwapModel:
    return shelf.add(1, golden_scores=np.zeros(8, np.float32))


def changed(shelf: Shelf) -> SwapModel:
    model = shelf.add(1)
    path = shelf.folder / model.model_path
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    return model


def other_digest(shelf: Shelf) -> SwapModel:
    model = shelf.add(1)
    model.sha256 = bytes(32)
    return model


def file_of_another(shelf: Shelf) -> SwapModel:
    model, other = shelf.add(1), shelf.add(2)
    model.model_path, model.sha256 = other.model_path, other.sha256
    return model


def without_manifest(shelf: Shelf) -> SwapModel:
    model = shelf.add(1)
    (shelf.folder / f"{model.model_id}.manifest.json").unlink()
    return model


def without_file(shelf: Shelf) -> SwapModel:
    model = shelf.add(1)
    (shelf.folder / model.model_path).unlink()
    return model


def linked(shelf: Shelf) -> SwapModel:
    model = without_file(shelf)
    (shelf.folder / model.model_path).symlink_to("/etc/passwd")
    return model


def at(path: str) -> Callable[[Shelf], SwapModel]:
    def place(shelf: Shelf) -> SwapModel:
        model = shelf.add(1)
        model.model_path = path
        return model

    return place


def shared(share: float, role: int = SHADOW) -> Callable[[Shelf], SwapModel]:
    def model(shelf: Shelf) -> SwapModel:
        found = shelf.add(1)
        found.share, found.role = share, role  # type: ignore[assignment]
        return found

    return model


@pytest.mark.parametrize(
    ("model", "code"),
    [
        (strange, "unsigned_manifest"),
        (other_features, "wrong_feature_schema"),
        (other_hash, "wrong_feature_schema"),
        (other_scores, "model_parity"),
        (changed, "bad_model_digest"),
        (other_digest, "bad_model_digest"),
        (file_of_another, "bad_model_digest"),
        (without_manifest, "model_missing"),
        (without_file, "model_missing"),
        (linked, "unsafe_model_file"),
        *(
            (at(path), "unsafe_model_path")
            for path in (
                "../secret.so",
                "/etc/passwd",
                "below/x.mevt",
                "",
                "a\0b",
                "a" * 64 + ".ubj",
            )
        ),
        (lambda _: SwapModel(model_id="../x", model_path="a" * 64 + ".mevt"), "unsafe_model_path"),
        (shared(1.5), "bad_params"),
        (shared(float("nan")), "bad_params"),
        (shared(1, role=7), "unsupported"),
    ],
)
def test_a_model_is_refused_by_name_and_the_one_before_stays(
    bench: Bench, shelf: Shelf, model: Callable[[Shelf], SwapModel], code: str
) -> None:
    before = shelf.add(5)
    assert swap(bench, before) == [""]
    state = bench.processor.state
    assert swap(bench, model(shelf)) == [code]
    assert (bench.processor.state, running(bench)) == (state, [before.model_id, ""])


def test_an_agent_without_a_folder_of_models_refuses_every_one(
    tmp_path: Path, shelf: Shelf
) -> None:
    assert swap(Bench(tmp_path / "other"), shelf.add(1)) == ["unsupported"]


def test_the_keys_in_force_vouch_for_a_model(bench: Bench, shelf: Shelf) -> None:
    bench.plane.model_key = SigningKey.generate("model-2")
    bench.send_bytes(bench.plane.rotate())
    assert swap(bench, shelf.add(1)) == ["unsigned_manifest"]
    shelf.key = bench.plane.model_key
    assert swap(bench, shelf.add(1)) == [""]


def test_of_several_swaps_in_a_snapshot_the_newest_of_each_role_is_loaded(
    bench: Bench, shelf: Shelf
) -> None:
    gate = bench.models = Gate(bench.models)
    models = [shelf.add(1), shelf.add(2), shelf.add(3, SHADOW), shelf.add(4, SHADOW)]
    commands = [bench.plane.command(model) for model in models]
    commands.append(bench.plane.command(SwapModel(role=SHADOW)))
    assert bench.send(bench.plane.snapshot(*reversed(commands))) == ["", ""]
    assert running(bench) == [models[1].model_id, ""]
    assert gate.loads == [models[1].model_id]


def answers(bench: Bench) -> list[tuple[str, str]]:
    return [(command_id, answer.reason_code) for command_id, answer in bench.reports]


def ordered(bench: Bench, model: SwapModel) -> Command:
    return bench.plane.command(model, Target(all=True))


def test_models_are_loaded_again_after_a_restart_and_nobody_is_told_twice(
    bench: Bench, shelf: Shelf
) -> None:
    command = ordered(bench, shelf.add(1))
    bench.send(command)
    bench.processor.note_reported({command.id})
    state = bench.processor.pending_save()
    assert state is not None
    bench.processor.save(state)
    bench.reports.clear()
    bench.restart()
    assert (running(bench), bench.reports) == ([command.model.model_id, ""], [])


def test_a_swap_that_was_accepted_before_a_crash_takes_effect_and_is_answered(
    bench: Bench, shelf: Shelf
) -> None:
    command = ordered(bench, shelf.add(1))
    die(bench, bench.plane.sealed(command), "after")
    bench.restart()
    assert answers(bench) == [(command.id, "")]
    assert running(bench) == [command.model.model_id, ""]
    assert bench.send(command) == [""]


def test_a_swap_that_was_accepted_before_a_crash_is_refused_when_its_model_is_gone(
    bench: Bench, shelf: Shelf
) -> None:
    command = ordered(bench, shelf.add(1))
    die(bench, bench.plane.sealed(command), "after")
    (shelf.folder / command.model.model_path).unlink()
    bench.restart()
    assert answers(bench) == [(command.id, "model_missing")]
    assert bench.processor.absent() == []


def test_killed_before_the_disk_a_swap_was_never_taken(bench: Bench, shelf: Shelf) -> None:
    command = ordered(bench, shelf.add(1))
    die(bench, bench.plane.sealed(command), "before")
    bench.restart()
    assert (answers(bench), running(bench)) == ([], ["", ""])
    assert bench.send(command) == [""]


def test_a_model_that_is_gone_after_a_restart_is_not_said_to_run(
    bench: Bench, shelf: Shelf
) -> None:
    model = shelf.add(1)
    swap(bench, model)
    bench.processor.save(bench.processor.state)
    (shelf.folder / model.model_path).unlink()
    bench.restart()
    said = bench.processor.running()
    assert (said.model_id, list(said.models)) == ("", [])
    assert [wanted.command.model.model_id for wanted in bench.processor.absent()] == [
        model.model_id
    ]


def test_an_older_swap_does_not_come_back(bench: Bench, shelf: Shelf) -> None:
    older, newer = (bench.plane.sealed(ordered(bench, shelf.add(seed))) for seed in (1, 2))
    assert bench.send_bytes(newer) + bench.send_bytes(older) == ["", "rolled_back"]
    assert running(bench) == [shelf.add(2).model_id, ""]


def test_what_a_model_has_done_is_counted(bench: Bench, shelf: Shelf) -> None:
    swap(bench, shelf.add(1))
    seen = opportunities(100)
    assert score(bench.active_models.production, seen).each() == scores(1, seen).tolist()
    seen[0].feature_schema = "opportunity.v0"
    del seen[1].features[-1]
    assert score(bench.active_models.production, seen[:3]).each() == [
        None,
        None,
        scores(1, seen[2:3])[0],
    ]
    (use,) = bench.processor.running().models
    assert isinstance(use, ModelUse)
    assert (use.scored, use.failed, use.unfit, use.since_ns) == (101, 0, 2, bench.clock())
    assert use.latency_p99_us > 0
    swap(bench, shelf.add(2))
    (use,) = bench.processor.running().models
    assert (use.scored, use.failed, use.unfit) == (0, 0, 0)


def test_a_model_that_gives_nonsense_gives_no_score_and_ends_nothing(
    bench: Bench, shelf: Shelf
) -> None:
    swap(bench, shelf.add(1))
    predictor = bench.active_models.production.active_model.model
    assert predictor is not None
    too_many = lambda rows: np.zeros(len(rows) + 1, np.float32)  # noqa: E731
    predictor.predict = too_many  # type: ignore[method-assign]
    assert score(bench.active_models.production, opportunities(3)).each() == [None] * 3
    (use,) = bench.processor.running().models
    assert use.failed >= 3


def test_drift_is_reported_feature_by_feature(bench: Bench, shelf: Shelf) -> None:
    swap(bench, shelf.add(1))
    seen = opportunities(600)
    score(bench.active_models.production, seen[:256])
    (early,) = bench.processor.running().models
    assert (early.HasField("score_psi"), dict(early.feature_psi)) == (False, {})
    for start in range(256, 600, 200):
        score(bench.active_models.production, seen[start : start + 200])
    (same,) = bench.processor.running().models
    assert same.feature_psi.keys() == set(OPPORTUNITY.names)
    assert max(same.score_psi, *same.feature_psi.values()) < 0.1
    swap(bench, shelf.add(1))
    for one in seen:
        one.features[0] += 100
    for start in range(0, 600, 200):
        score(bench.active_models.production, seen[start : start + 200])
    (other,) = bench.processor.running().models
    moved = other.feature_psi.pop(OPPORTUNITY.names[0])
    assert moved > 1
    assert max(other.feature_psi.values()) < 0.1
