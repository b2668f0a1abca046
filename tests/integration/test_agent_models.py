"""Tests of an agent's models: swapped under load, scored in shadow, fetched, reloaded."""

import time
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import numpy as np
import pytest

from mev.agent import Decision, Level, ModelFolder, Strategy, fetch_from
from mev.agent.shadow import is_chosen
from mev.agent.strategies.arbitrage import Arbitrage
from mev.cli.agent import status_text
from mev.crypto.envelope import seal
from mev.crypto.keys import SigningKey
from mev.crypto.trust import COMMAND, ROOT
from mev.scoring.predictor import Rows, Scores
from mev.wire.pb.control_pb2 import ACK, NACK, PRODUCTION, SHADOW, Report, SetConfig, SwapModel
from mev.wire.pb.envelope_pb2 import KeySet
from mev.wire.pb.events_pb2 import Bundle, Opportunity
from tests.integration.test_agent import activate, held, running
from tests.services.waits import until_async
from tests.unit.agent.models import Gate, Shelf, opportunities, scores
from tests.unit.agent.plane import MODULE, Clock
from tests.unit.agent.site import FakeSite


@pytest.fixture
async def site() -> AsyncIterator[FakeSite]:
    found = FakeSite(Clock(time.time_ns()))
    await found.start()
    yield found
    await found.stop()


@pytest.fixture
def shelf(site: FakeSite, tmp_path: Path) -> Shelf:
    return Shelf(tmp_path / "models", site.plane.model_key)


@pytest.fixture
def gate(shelf: Shelf) -> Gate:
    return Gate(ModelFolder(shelf.folder))


class Notes(Strategy):
    """Opens for everything, and notes the score."""

    module = MODULE

    def __init__(self) -> None:
        self.seen: dict[str, float | None] = {}

    def on_opportunity(self, opportunity: Opportunity, score: float | None) -> Iterable[Decision]:
        self.seen[opportunity.id] = score
        return (
            Decision.opens(
                Bundle(bundle_id=opportunity.id, opportunity_id=opportunity.id, simulated=True)
            ),
        )


async def swap(site: FakeSite, model: SwapModel) -> Report:
    return await site.answer(await site.order(site.plane.command(model)))


def models(report: Report) -> list[tuple[int, str]]:
    return [(use.role, use.model_id) for use in report.running.models]


async def test_a_swapped_model_scores_from_then_on_and_is_reported(
    site: FakeSite, shelf: Shelf, gate: Gate, tmp_path: Path
) -> None:
    notes, model, seen = Notes(), shelf.add(1), opportunities(300)
    async with running(site, tmp_path, strategy=notes, models=gate) as bot:
        await activate(site)
        await site.see(seen[:10])
        await until_async(lambda: len(notes.seen) == 10)
        report = await swap(site, model)
        assert (report.result, report.detail) == (ACK, f"model {model.model_id[:12]} decides")
        assert (models(report), report.running.model_version) == (
            [(PRODUCTION, model.model_id)],
            "v1",
        )
        await site.see(seen[10:])
        await until_async(lambda: len(notes.seen) == 300)
        assert [notes.seen[one.id] for one in seen] == [None] * 10 + scores(1, seen[10:]).tolist()
        counted = await site.until(
            lambda report: any(use.scored == 290 for use in report.running.models)
        )
        assert counted.running.models[0].mean_score == pytest.approx(scores(1, seen[10:]).mean())
        assert bot.session is not None
        assert f"| model {model.model_id[:12]}" in status_text(bot.session)
        assert (await swap(site, SwapModel())).running.model_id == ""


async def test_orders_are_obeyed_while_a_model_is_loading(
    site: FakeSite, shelf: Shelf, gate: Gate, tmp_path: Path
) -> None:
    model = shelf.add(1)
    opened = gate.shut(model)
    async with running(site, tmp_path, models=gate) as bot:
        await activate(site)
        loading = site.plane.command(model, expires_s=5)
        await site.order(loading)
        await until_async(lambda: bool(gate.loads))
        halted = await site.answer(await site.order(site.plane.level(Level.HALTED)))
        assert (halted.result, held(halted), models(halted)) == (ACK, Level.HALTED, [])
        assert bot.session is not None
        assert "model" not in bot.session.processor.state.accepted
        received_ns = site.plane.clock()
        site.plane.clock.advance(60)  # it was fresh when it came
        opened.set()
        report = await site.answer(loading.id)
        assert (report.result, models(report)) == (ACK, [(PRODUCTION, model.model_id)])
        assert report.received_at_ns <= received_ns < report.applied_at_ns


async def test_a_newer_swap_overtakes_one_that_is_loading(
    site: FakeSite, shelf: Shelf, gate: Gate, tmp_path: Path
) -> None:
    first, second = shelf.add(1), shelf.add(2)
    opened = gate.shut(first)
    async with running(site, tmp_path, models=gate) as bot:
        older = await site.order(site.plane.command(first))
        await until_async(lambda: bool(gate.loads))
        report = await swap(site, second)
        assert (report.result, models(report)) == (ACK, [(PRODUCTION, second.model_id)])
        assert (await site.answer(older)).reason_code == "rolled_back"
        opened.set()
        beside = await swap(site, shelf.add(3, SHADOW))
        assert models(beside)[0] == (PRODUCTION, second.model_id)
        assert bot.session is not None
        assert bot.session.processor.absent() == []


async def test_an_empty_role_overtakes_a_model_that_is_loading(
    site: FakeSite, shelf: Shelf, gate: Gate, tmp_path: Path
) -> None:
    model = shelf.add(1)
    gate.shut(model)
    async with running(site, tmp_path, models=gate):
        older = await site.order(site.plane.command(model))
        await until_async(lambda: bool(gate.loads))
        assert (await swap(site, SwapModel())).result == ACK
        assert (await site.answer(older)).reason_code == "rolled_back"


async def test_keys_that_are_rotated_while_a_model_loads_vouch_for_neither_order_nor_model(
    site: FakeSite, shelf: Shelf, gate: Gate, tmp_path: Path
) -> None:
    model = shelf.add(1)
    opened = gate.shut(model)
    async with running(site, tmp_path, models=gate) as bot:
        ordered = await site.order(site.plane.command(model))
        await until_async(lambda: bool(gate.loads))
        site.in_force.clear()
        await site.send_bytes(site.plane.rotate())
        await site.until(lambda report: report.running.key_epoch == 2)
        opened.set()
        assert (await site.answer(ordered)).reason_code == "unknown_key"
        assert bot.session is not None
        assert bot.session.active_models.model_id(PRODUCTION) == ""


async def test_a_model_that_was_loaded_under_keys_that_no_longer_count_is_loaded_again(
    site: FakeSite, shelf: Shelf, gate: Gate, tmp_path: Path
) -> None:
    plane, registrar = site.plane, SigningKey.generate("registrar")
    keys = [plane.root.trusted_for(ROOT), plane.key.trusted_for(COMMAND)]
    first = KeySet(
        epoch=1, issued_at_ns=plane.clock(), keys=[*keys, registrar.trusted_for(COMMAND)]
    )
    plane.key_set = seal(first, plane.root).SerializeToString()
    model = shelf.add(1, key=registrar)
    opened = gate.shut(model)
    async with running(site, tmp_path, models=gate):
        ordered = await site.order(plane.command(model))
        await until_async(lambda: bool(gate.loads))
        plane.key_set = seal(
            KeySet(epoch=2, issued_at_ns=plane.clock(), keys=keys), plane.root
        ).SerializeToString()
        await site.send_bytes(plane.key_set)
        await site.until(lambda report: report.running.key_epoch == 2)
        opened.set()
        assert (await site.answer(ordered)).reason_code == "unsigned_manifest"
        assert gate.loads == [model.model_id, model.model_id]


async def test_a_refused_swap_is_not_tried_again_by_every_snapshot(
    site: FakeSite, shelf: Shelf, gate: Gate, tmp_path: Path
) -> None:
    wrong, good = shelf.add(1, feature_schema="opportunity.v0"), shelf.add(2, SHADOW)
    async with running(site, tmp_path, models=gate):
        report = await swap(site, wrong)
        assert (report.result, report.reason_code) == (NACK, "wrong_feature_schema")
        assert "opportunity.v0" in report.detail
        await site.stop()
        site.in_force.append(site.plane.command(good))
        await site.start()
        await site.answer(site.in_force[-1].id)
        assert gate.loads == [wrong.model_id, good.model_id]
        assert len([report for report in site.reports if report.reason_code]) == 1


async def test_models_are_loaded_again_after_a_restart_without_holding_up_orders(
    site: FakeSite, shelf: Shelf, gate: Gate, tmp_path: Path
) -> None:
    model, notes = shelf.add(1), Notes()
    async with running(site, tmp_path, models=gate):
        await swap(site, model)
    site.reports.clear()
    opened = gate.shut(model)
    async with running(site, tmp_path, strategy=notes, models=gate):
        await activate(site)
        await site.see(opportunities(1))
        await until_async(lambda: len(notes.seen) == 1)
        opened.set()
        back = await site.until(lambda report: bool(report.running.models))
        assert (back.running.model_id, models(back)) == (
            model.model_id,
            [(PRODUCTION, model.model_id)],
        )
        await site.see(opportunities(2)[1:])
        await until_async(lambda: len(notes.seen) == 2)
        assert list(notes.seen.values()) == [None, scores(1, opportunities(2))[1]]
        assert gate.loads == [model.model_id, model.model_id]


async def test_every_decision_is_made_with_the_score_of_one_model(
    site: FakeSite, shelf: Shelf, gate: Gate, tmp_path: Path
) -> None:
    notes, seen = Notes(), opportunities(1000)
    both = np.stack([scores(seed, seen) for seed in (1, 2)])
    assert (both[0] != both[1]).mean() > 0.9
    async with running(site, tmp_path, strategy=notes, models=gate):
        await activate(site)
        await swap(site, shelf.add(1))
        for part in range(10):
            ordered = await site.order(site.plane.command(shelf.add(1 + part % 2)))
            await site.see(seen[part * 100 : part * 100 + 50])
            await site.answer(ordered)
            await site.see(seen[part * 100 + 50 : part * 100 + 100])
        await until_async(lambda: len(notes.seen) == 1000)
    found = np.array([notes.seen[one.id] for one in seen], np.float32)
    by = found == both
    assert by.any(axis=0).all()
    assert (by.sum(axis=1) > 250).all()


@pytest.mark.parametrize("share", [1.0, 0.3])
async def test_the_shadow_is_published_beside_what_decides(
    site: FakeSite, shelf: Shelf, gate: Gate, tmp_path: Path, share: float
) -> None:
    seen = opportunities(300)
    chosen = {one.id: index for index, one in enumerate(seen) if is_chosen(one.id, share)}
    assert abs(len(chosen) - 300 * share) < 40
    first, second = shelf.add(1), shelf.add(2, SHADOW, share=share)
    async with running(site, tmp_path, strategy=Notes(), models=gate) as bot:
        await activate(site)
        await swap(site, first)
        await swap(site, second)
        await site.see(seen)
        await until_async(lambda: len(site.scores) >= len(chosen))
        assert bot.session is not None
        await until_async(
            lambda: bot.session is not None and bot.session.trader.counts.decisions == 300
        )
    said = {score.opportunity_id: score for score in site.scores}
    assert said.keys() == chosen.keys()
    for name, score in said.items():
        one = seen[chosen[name]]
        assert (score.id, score.slot, score.agent_id, score.simulated) == (
            f"a1:{name}",
            one.slot,
            "a1",
            True,
        )
        assert (score.model_id, score.shadow_model_id) == (first.model_id, second.model_id)
        assert (score.score, score.shadow_score) == (scores(1, [one])[0], scores(2, [one])[0])


async def test_a_shadow_that_hangs_delays_no_decision(
    site: FakeSite, shelf: Shelf, gate: Gate, tmp_path: Path
) -> None:
    notes, model = Notes(), shelf.add(2, SHADOW)
    opened = gate.shut(shelf.add(9))
    async with running(site, tmp_path, strategy=notes, models=gate) as bot:
        await activate(site)
        await swap(site, model)
        assert bot.session is not None
        predictor = bot.session.active_models.shadow.active_model.model
        assert predictor is not None
        predict = predictor.predict

        def hang(rows: Rows) -> Scores:
            opened.wait(30)
            return predict(rows)

        predictor.predict = hang  # type: ignore[method-assign]
        for part in range(5):
            await site.see(opportunities(500)[part * 100 : part * 100 + 100])
            wanted = part * 100 + 100
            await until_async(
                lambda wanted=wanted: len(site.bundles) == wanted,  # type: ignore[misc]
            )
        assert not site.scores
        opened.set()
        await until_async(lambda: len(site.scores) == 500)
        assert all(np.isnan(score.score) and not score.model_id for score in site.scores)


def offered(site: FakeSite, shelf: Shelf, swap: SwapModel) -> dict[str, bytes]:
    """Serve the files of a model from the control plane after deleting them locally."""
    for name in (swap.model_path, f"{swap.model_id}.manifest.json"):
        site.files[name] = (shelf.folder / name).read_bytes()
        (shelf.folder / name).unlink()
    return site.files


async def test_a_model_that_is_not_here_is_fetched_and_kept(
    site: FakeSite, shelf: Shelf, tmp_path: Path
) -> None:
    model = shelf.add(1)
    files = dict(offered(site, shelf, model))
    folder = ModelFolder(tmp_path / "new", fetch_from(site.locate))
    async with running(site, tmp_path, models=folder):
        assert (await swap(site, model)).result == ACK
        site.files.clear()
        assert (await swap(site, model)).result == ACK
    for name, content in files.items():
        kept = tmp_path / "new" / name
        assert (kept.read_bytes(), kept.stat().st_mode & 0o777) == (content, 0o400)


async def test_what_is_fetched_is_checked_before_it_is_kept(
    site: FakeSite, shelf: Shelf, tmp_path: Path
) -> None:
    model = shelf.add(1)
    files = offered(site, shelf, model)
    manifest = f"{model.model_id}.manifest.json"
    good = dict(files)
    strange = Shelf(tmp_path / "strange", SigningKey.generate("thief"))
    strange.add(1)
    async with running(site, tmp_path, models=ModelFolder(shelf.folder, fetch_from(site.locate))):
        files[manifest] = (strange.folder / manifest).read_bytes()
        assert (await swap(site, model)).reason_code == "unsigned_manifest"
        files[manifest] = b"x" * (3 << 20)
        assert (await swap(site, model)).reason_code == "unsafe_model_file"
        assert not list(shelf.folder.iterdir())
        files |= {manifest: good[manifest], model.model_path: good[model.model_path] + b"x"}
        assert (await swap(site, model)).reason_code == "bad_model_digest"
        del files[model.model_path]
        missing = await swap(site, model)
        assert (missing.reason_code, "404" in missing.detail) == ("model_missing", True)
        assert [path.name for path in shelf.folder.iterdir()] == [manifest]
        native = SwapModel(model_id=model.model_id, model_path="a" * 64 + ".so")
        files[native.model_path] = b"\x7fELF"
        assert (await swap(site, native)).reason_code == "bad_model_digest"
        assert not any(native.model_path in request for request in site.requests)


async def test_a_manifest_that_was_signed_again_takes_the_place_of_the_one_before(
    site: FakeSite, shelf: Shelf, tmp_path: Path
) -> None:
    model = shelf.add(1)
    async with running(site, tmp_path, models=ModelFolder(shelf.folder, fetch_from(site.locate))):
        site.plane.model_key = SigningKey.generate("model-2")
        await site.send_bytes(site.plane.rotate())
        await site.until(lambda report: report.running.key_epoch == 2)
        assert (await swap(site, model)).reason_code == "unsigned_manifest"
        again = Shelf(tmp_path / "again", site.plane.model_key)
        again.add(1)
        name = f"{model.model_id}.manifest.json"
        site.files[name] = (again.folder / name).read_bytes()
        assert (await swap(site, model)).result == ACK


async def test_swap_with_an_unsigned_manifest_is_tried_again_until_it_is_signed(
    site: FakeSite, shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mev.agent.model_loader._UNSIGNED_AGAIN_AFTER_S", 0.2)
    model, other = shelf.add(1), shelf.add(2)
    async with running(site, tmp_path, models=ModelFolder(shelf.folder, fetch_from(site.locate))):
        site.plane.model_key = SigningKey.generate("model-2")
        await site.send_bytes(site.plane.rotate())
        await site.until(lambda report: report.running.key_epoch == 2)
        overtaken = site.plane.command(other)
        assert (await site.answer(await site.order(overtaken))).reason_code == "unsigned_manifest"
        command = site.plane.command(model)
        assert (await site.answer(await site.order(command))).reason_code == "unsigned_manifest"
        again = Shelf(tmp_path / "again", site.plane.model_key)
        for number, each in ((1, model), (2, other)):
            again.add(number)
            name = f"{each.model_id}.manifest.json"
            site.files[name] = (again.folder / name).read_bytes()
        report = await site.until(
            lambda report: report.command_id == command.id and report.result == ACK
        )
        assert models(report) == [(PRODUCTION, model.model_id)]
        answers = [
            (one.command_id, one.result, one.reason_code)
            for one in site.reports
            if one.command_id in {command.id, overtaken.id}
        ]
        assert answers == [
            (overtaken.id, NACK, "unsigned_manifest"),
            (command.id, NACK, "unsigned_manifest"),
            (command.id, ACK, ""),
        ]


async def test_min_score_without_a_model_is_reported_until_a_model_decides(
    site: FakeSite, shelf: Shelf, gate: Gate, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reason = "min_score_without_model"

    async def set_min_score(value: str) -> Report:
        return await site.answer(
            await site.order(
                site.plane.command(
                    SetConfig(config_key="min_score", config_value_json=value, hot_reload=True)
                )
            )
        )

    async with running(site, tmp_path, strategy=Arbitrage(), models=gate) as bot:
        await activate(site)
        answer = await set_min_score("0.5")
        assert (answer.result, list(answer.running.blocked_by)) == (ACK, [reason]), answer
        assert bot.session is not None
        assert f"nothing is sent: {reason}" in status_text(bot.session)
        assert not (await swap(site, shelf.add(1))).running.blocked_by
        assert list((await swap(site, SwapModel())).running.blocked_by) == [reason]
        await until_async(lambda: f"nothing is sent: {reason}" in caplog.text)
        assert not (await set_min_score("0")).running.blocked_by
