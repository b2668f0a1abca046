import json
from collections import Counter
from itertools import islice

import numpy as np
import numpy.typing as npt
import pytest
from typer.testing import CliRunner

from mev.cli.main import app
from mev.simulate.model import EPOCH_NS, Market
from mev.simulate.service import batches
from mev.wire.features import OPPORTUNITY
from mev.wire.pb.events_pb2 import Bundle, Opportunity, Tick
from mev.wire.registry import EVENT_TYPES

Numbers = npt.NDArray[np.float64]
SAMPLE = 4000


def make(
    seed: int, count: int, rate: float = 100.0, start_ns: int = EPOCH_NS
) -> list[tuple[Tick, Opportunity, Bundle]]:
    market = Market(seed, rate, start_ns)
    return [market.step() for _ in range(count)]


def encoded(steps: list[tuple[Tick, Opportunity, Bundle]]) -> list[bytes]:
    return [message.SerializeToString(deterministic=True) for step in steps for message in step]


@pytest.fixture(scope="module")
def sample() -> list[tuple[Tick, Opportunity, Bundle]]:
    return make(7, SAMPLE)


def test_the_same_seed_and_start_give_the_same_bytes() -> None:
    assert encoded(make(3, 200)) == encoded(make(3, 200))


def test_another_seed_or_start_gives_other_events() -> None:
    base = encoded(make(3, 50))
    assert not set(base) & set(encoded(make(4, 50)))
    assert not set(base[::3]) & set(encoded(make(3, 50, start_ns=EPOCH_NS + 1))[::3])


def test_every_event_is_marked(sample: list[tuple[Tick, Opportunity, Bundle]]) -> None:
    assert all(message.simulated for step in sample for message in step)


def test_events_are_whole_and_belong_together(
    sample: list[tuple[Tick, Opportunity, Bundle]],
) -> None:
    assert len({opportunity.id for _, opportunity, _ in sample}) == SAMPLE
    assert len({bundle.bundle_id for *_, bundle in sample}) == SAMPLE
    for tick, opportunity, bundle in sample:
        assert tick.bid_price < tick.last_price < tick.ask_price
        assert (bundle.opportunity_id, bundle.agent_id) == (opportunity.id, opportunity.agent_id)
        assert bundle.slot > opportunity.slot
        assert opportunity.deadline_ns > opportunity.detected_at_ns
        assert (opportunity.feature_schema, len(opportunity.features)) == (
            OPPORTUNITY.name,
            len(OPPORTUNITY.names),
        )
        assert bool(bundle.error) is not bundle.landed
        assert (opportunity.route[0].token_in, opportunity.route[-1].token_out) == (
            opportunity.route[0].token_in,
        ) * 2


def test_time_and_slots_follow_the_rate() -> None:
    steps = make(1, 11, rate=5.0)
    assert [tick.timestamp_ns - EPOCH_NS for tick, *_ in steps] == [
        number * 200_000_000 for number in range(11)
    ]
    slots = [opportunity.slot for _, opportunity, _ in steps]
    assert [slot - slots[0] for slot in slots] == [number // 2 for number in range(11)]


def auc(scores: Numbers, landed: npt.NDArray[np.bool_]) -> float:
    """Return the chance that a landed one scores above one that did not."""
    ranks = np.empty(len(scores))
    ranks[np.argsort(scores)] = np.arange(1, len(scores) + 1)
    hits = int(landed.sum())
    return float((ranks[landed].sum() - hits * (hits + 1) / 2) / (hits * (len(scores) - hits)))


def fit(features: Numbers, landed: npt.NDArray[np.bool_]) -> Numbers:
    """Return the weights of a logistic regression, by Newton's method with a small ridge."""
    weights = np.zeros(features.shape[1])
    for _ in range(12):
        chance = 1 / (1 + np.exp(-features @ weights))
        curvature = (features * (chance * (1 - chance))[:, None]).T @ features + 1e-3 * np.eye(
            len(weights)
        )
        weights += np.linalg.solve(curvature, features.T @ (landed - chance) - 1e-3 * weights)
    return weights


def design(steps: list[tuple[Tick, Opportunity, Bundle]]) -> tuple[Numbers, npt.NDArray[np.bool_]]:
    """Return standardised features with a constant, missing ones at their mean, and outcomes."""
    raw = np.array([opportunity.features for _, opportunity, _ in steps], dtype=np.float64)
    filled = np.where(np.isnan(raw), np.nanmean(raw, axis=0), raw)
    spread = filled.std(axis=0)
    scaled = (filled - filled.mean(axis=0)) / np.where(spread > 0, spread, 1)
    return np.column_stack([scaled, np.ones(len(scaled))]), np.array(
        [bundle.landed for *_, bundle in steps]
    )


def test_the_features_predict_landing_but_not_with_certainty(
    sample: list[tuple[Tick, Opportunity, Bundle]],
) -> None:
    features, landed = design(sample)
    half = SAMPLE // 2
    assert 0.2 < landed.mean() < 0.8
    assert 0.78 < auc(features[half:] @ fit(features[:half], landed[:half]), landed[half:]) < 0.97


def test_the_bots_own_estimate_predicts_landing_but_not_with_certainty(
    sample: list[tuple[Tick, Opportunity, Bundle]],
) -> None:
    estimates = np.array([opportunity.probability for _, opportunity, _ in sample])
    assert ((estimates > 0) & (estimates < 1)).all()
    assert 0.78 < auc(estimates, design(sample)[1]) < 0.97


def test_some_features_are_missing(sample: list[tuple[Tick, Opportunity, Bundle]]) -> None:
    missing = np.isnan(np.array([opportunity.features for _, opportunity, _ in sample]))
    assert 0.01 < missing.mean() < 0.03
    assert missing.any(axis=0).all()


def test_batches_hold_what_the_market_makes_in_order() -> None:
    found = list(batches(Market(5, 100.0), 23, paced=True))
    steps = make(5, 23)
    for index, name in enumerate(("tick", "opportunity", "bundle")):
        event = EVENT_TYPES[name]
        assert [len(batch[event]) for batch in found] == [5, 5, 5, 5, 3]
        assert [record for batch in found for record in batch[event]] == [
            event.record(step[index]) for step in steps
        ]


def test_batches_without_a_count_have_no_end() -> None:
    assert len(list(islice(batches(Market(5, 1.0), None, paced=True), 100))) == 100


def test_a_dry_run_prints_the_same_events_each_time() -> None:
    first, second = (
        CliRunner().invoke(app, ["simulate", "--dry-run", "--count", "4", "--seed", "9"])
        for _ in range(2)
    )
    assert first.exit_code == 0
    assert first.stdout == second.stdout
    documents = [json.loads(line) for line in first.stdout.splitlines()]
    assert [document["type"] for document in documents] == ["tick", "opportunity", "bundle"] * 4
    assert all(document["simulated"] for document in documents)


def test_failures_cost_what_they_pay_and_landed_bundles_pay_tip_and_fee(
    sample: list[tuple[Tick, Opportunity, Bundle]],
) -> None:
    paid = Counter[tuple[bool, bool]]()
    for _, opportunity, bundle in sample:
        fee, tip = opportunity.fee_lamports, opportunity.tip_lamports
        if bundle.landed:
            assert bundle.tip_lamports == tip
            assert bundle.profit_lamports <= opportunity.expected_profit_lamports - fee - tip
            continue
        on_chain, tip_apart = (
            bundle.error.startswith("reverted on chain"),
            "tip apart" in bundle.error,
        )
        assert bundle.tip_lamports == (tip if tip_apart else 0)
        assert bundle.profit_lamports == -(fee if on_chain else 0) - (tip if tip_apart else 0)
        paid[on_chain, tip_apart] += 1
    assert paid.keys() == {(False, False), (True, False), (True, True)}
    without_jito = [
        bundle
        for _, opportunity, bundle in sample
        if opportunity.features[8] == 0 and not bundle.landed
    ]
    assert not any(bundle.tip_lamports for bundle in without_jito)
    assert any(bundle.profit_lamports < 0 for bundle in without_jito)
