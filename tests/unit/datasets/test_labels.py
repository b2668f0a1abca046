"""Labels of training examples: an agent's own bundle, in a window of slots, of the same run."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mev.datasets.errors import InvalidExportError
from mev.datasets.query import LABEL_SLOTS, Labels, checked
from mev.simulate.model import EPOCH_NS, Market
from mev.store.clickhouse import ClickHouse
from mev.wire.features import OPPORTUNITY
from mev.wire.pb.events_pb2 import Bundle, Opportunity
from tests.unit.datasets.stored import empty, export, parquet, put

SLOT = 1_000
FEATURES = [0.0] * len(OPPORTUNITY.names)


def seen(opportunity_id: str = "o", slot: int = SLOT, *, simulated: bool = False) -> Opportunity:
    return Opportunity(
        id=opportunity_id,
        slot=slot,
        features=FEATURES,
        feature_schema=OPPORTUNITY.name,
        simulated=simulated,
    )


def sent(
    bundle_id: str,
    agent_id: str,
    slot: int,
    *,
    landed: bool = False,
    profit: int = 0,
    to: str = "o",
    simulated: bool = False,
) -> Bundle:
    return Bundle(
        bundle_id=bundle_id,
        opportunity_id=to,
        agent_id=agent_id,
        slot=slot,
        landed=landed,
        profit_lamports=profit,
        simulated=simulated,
    )


def examples(store: ClickHouse, folder: Path, **options: Any) -> list[dict[str, Any]]:
    return parquet(folder, export(store, folder, checked("training_examples", **options)))


def labels(rows: list[dict[str, Any]]) -> dict[tuple[str, str], tuple[bool, int]]:
    found = {(row["id"], row["agent_id"]): (row["landed"], row["profit_lamports"]) for row in rows}
    assert len(found) == len(rows)
    return found


def test_two_agents_on_one_opportunity_are_two_examples_with_their_own_labels(
    store: ClickHouse, tmp_path: Path
) -> None:
    empty(store)
    put(store, "opportunity", [seen()])
    put(
        store,
        "bundle",
        [sent("b1", "a1", SLOT + 1, landed=True, profit=7), sent("b2", "a2", SLOT + 2, profit=-5)],
    )
    put(store, "bundle", [sent("b3", "a2", SLOT + 1, profit=-6)])
    manifest = export(store, tmp_path / "own", checked("training_examples"))
    assert manifest["order_by"] == ["slot", "id", "agent_id"]
    rows = parquet(tmp_path / "own", manifest)
    assert [row["agent_id"] for row in rows] == ["a1", "a2"]
    assert labels(rows) == {("o", "a1"): (True, 7), ("o", "a2"): (False, -6)}
    assert labels(examples(store, tmp_path / "market", labels=Labels.MARKET)) == {
        ("o", "a1"): (True, 7)
    }
    assert labels(examples(store, tmp_path / "filter", filter=['agent_id == "a2"'])) == {
        ("o", "a2"): (False, -6)
    }
    market = examples(store, tmp_path / "both", filter=['agent_id == "a2"'], labels=Labels.MARKET)
    assert labels(market) == {("o", "a2"): (False, -6)}


def test_bundles_outside_the_window_of_slots_give_no_label(
    store: ClickHouse, tmp_path: Path
) -> None:
    empty(store)
    put(store, "opportunity", [seen(), seen("late", SLOT), seen("same", SLOT)])
    put(
        store,
        "bundle",
        [
            sent("before", "a1", SLOT - 1, landed=True, profit=1),
            sent("last", "a1", SLOT + LABEL_SLOTS, profit=-2),
        ],
    )
    put(
        store,
        "bundle",
        [sent("beyond", "a1", SLOT + LABEL_SLOTS + 1, landed=True, profit=3, to="late")],
    )
    put(store, "bundle", [sent("at-once", "a1", SLOT, landed=True, profit=4, to="same")])
    assert labels(examples(store, tmp_path / "default")) == {
        ("o", "a1"): (False, -2),
        ("same", "a1"): (True, 4),
    }
    wider = labels(examples(store, tmp_path / "wider", label_slots=LABEL_SLOTS + 1))
    assert wider == {("o", "a1"): (False, -2), ("late", "a1"): (True, 3), ("same", "a1"): (True, 4)}
    assert labels(examples(store, tmp_path / "none", label_slots=0)) == {("same", "a1"): (True, 4)}


def test_example_is_simulated_when_its_opportunity_or_its_bundle_is(
    store: ClickHouse, tmp_path: Path
) -> None:
    empty(store)
    put(store, "opportunity", [seen("real"), seen("paper"), seen("made-up", simulated=True)])
    for number, (name, simulated) in enumerate(
        [("real", False), ("paper", True), ("made-up", False)]
    ):
        put(
            store,
            "bundle",
            [sent(f"b{number}", "a1", SLOT, landed=True, to=name, simulated=simulated)],
        )
    put(store, "bundle", [sent("b9", "a2", SLOT + 1, to="paper")])
    rows = {
        (row["id"], row["agent_id"]): row["simulated"] for row in examples(store, tmp_path / "all")
    }
    assert rows == {
        ("real", "a1"): False,
        ("paper", "a1"): True,
        ("paper", "a2"): False,
        ("made-up", "a1"): True,
    }
    real = examples(store, tmp_path / "real", filter=["simulated == false"])
    assert {(row["id"], row["agent_id"]) for row in real} == {("real", "a1"), ("paper", "a2")}
    market = examples(
        store, tmp_path / "market", filter=["simulated == false"], labels=Labels.MARKET
    )
    assert {(row["id"], row["agent_id"], row["landed"]) for row in market} == {
        ("real", "a1", True),
        ("paper", "a2", False),
    }
    made_up = examples(store, tmp_path / "simulated", filter=["simulated == true"])
    assert {(row["id"], row["agent_id"]) for row in made_up} == {("paper", "a1"), ("made-up", "a1")}


def test_a_second_run_of_the_simulator_changes_no_label_of_the_first(
    store: ClickHouse, tmp_path: Path
) -> None:
    empty(store)
    count = 500
    runs = [
        Market(7, 100.0),
        Market(7, 50.0),
        Market(7, 100.0, EPOCH_NS + 1_000_000_000),
        Market(8, 100.0),
    ]
    first, *others = ([market.step() for _ in range(count)] for market in runs)
    for steps in (first, *others):
        put(store, "opportunity", [opportunity for _, opportunity, _ in steps])
        put(store, "bundle", [bundle for *_, bundle in steps])
        if steps is first:
            before = labels(examples(store, tmp_path / "before"))
    after = labels(examples(store, tmp_path / "after"))
    assert len(before) == count
    assert len(after) == len(runs) * count
    assert {key: after[key] for key in before} == before
    put(
        store, "opportunity", [opportunity for _, opportunity, _ in first]
    )  # the same run again is the same events
    put(store, "bundle", [bundle for *_, bundle in first])
    assert labels(examples(store, tmp_path / "again")) == after


BUNDLES = st.lists(
    st.tuples(
        st.sampled_from(["o", "p"]),
        st.sampled_from(["a1", "a2", "a3"]),
        st.integers(SLOT - 2, SLOT + 6),
        st.booleans(),
    ),
    max_size=12,
)


@given(bundles=BUNDLES, window=st.integers(0, 5), part_rows=st.integers(1, 3), market=st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.slow
def test_each_opportunity_and_agent_has_its_best_bundle_in_the_window(
    store: ClickHouse,
    tmp_path_factory: pytest.TempPathFactory,
    bundles: list[tuple[str, str, int, bool]],
    window: int,
    part_rows: int,
    market: bool,
) -> None:
    slots = {"o": SLOT, "p": SLOT + 1}
    empty(store)
    put(store, "opportunity", [seen(name, slot) for name, slot in slots.items()])
    for number, (name, agent_id, slot, landed) in enumerate(bundles):
        put(
            store,
            "bundle",
            [sent(f"b{number:02}", agent_id, slot, landed=landed, profit=number, to=name)],
        )
    expected: dict[tuple[str, ...], tuple[bool, int, int]] = {}
    for number, (name, agent_id, slot, landed) in enumerate(bundles):
        if 0 <= slot - slots[name] <= window:
            key = (name,) if market else (name, agent_id)
            expected[key] = min(
                expected.get(key, (not landed, slot, number)), (not landed, slot, number)
            )
    options = {
        "labels": Labels.MARKET if market else Labels.AGENT,
        "label_slots": window,
        "part_rows": part_rows,
    }
    rows = examples(store, tmp_path_factory.mktemp("examples"), **options)
    found = {
        ((row["id"],) if market else (row["id"], row["agent_id"])): row["profit_lamports"]
        for row in rows
    }
    assert found == {key: number for key, (_, _, number) in expected.items()}
    assert len(rows) == len(expected)
    order = [(row["slot"], row["id"], row["agent_id"]) for row in rows]
    assert order == sorted(order)


def test_labels_are_for_training_examples_alone() -> None:
    with pytest.raises(InvalidExportError, match="they are for training_examples"):
        checked("bundle", label_slots=1)
    with pytest.raises(InvalidExportError, match="label_slots: 0 to"):
        checked("training_examples", label_slots=-1)
