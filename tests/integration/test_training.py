"""Tests from simulated events to a registered model, over HTTP and by command."""

import json

import httpx
import pytest

from mev.wire.features import OPPORTUNITY
from tests.integration.test_http import listed
from tests.services.system import RunningSystem

COUNT = 3_000
TRAIN = "/api/training/train"


@pytest.fixture(scope="module", autouse=True)
def _events(system: RunningSystem) -> None:
    """Put a market in."""
    system.simulate(COUNT)


def test_a_model_is_trained_registered_and_listed_by_the_command(
    system: RunningSystem, http: httpx.Client
) -> None:
    done = json.loads(system.run("train", "--rounds", "40", "--device", "cpu", "--json").stdout)
    assert done["job"]["state"] == "succeeded"
    assert done["result"]["metrics"]["auc"] > 0.75
    (model,) = [
        item
        for item in http.get("/api/training/models").json()["items"]
        if item["id"] == done["model_id"]
    ]
    assert model["features"] == list(OPPORTUNITY.names)
    assert (set(model["forms"]), model["parity"]["max_abs_diff"]) == ({"ubj", "mevt"}, 0)
    assert model["lineage"]["spec"]["rounds"] == 40
    assert http.get(f"/api/training/models/{model['id']}").json() == model
    assert http.get("/api/training/models/champion").json()["code"] == "unknown_model"
    for path in done["pictures"]:
        assert http.get(path).content.startswith(b"\x89PNG")
        drawn = http.get(path.replace(".png", ".svg"))
        assert (drawn.headers["content-type"], drawn.content[:5]) == ("image/svg+xml", b"<?xml")
    for name in ("model.ubj", "roc", "roc.png.svg", "roc.svg.png", "nothing.png"):
        refused = http.get(f"/api/training/jobs/{done['id']}/pictures/{name}")
        assert (refused.status_code, refused.json()["code"]) == (404, "unknown_training"), name
    assert model["lineage"]["environment"]["packages"]["numpy"]
    assert (model["lineage"]["job"], model["lineage"]["trained_by"]) == (done["id"], "master")
    assert model["lineage"]["importance"] == done["result"]["importance"]
    assert model["lineage"]["rows"] == done["result"]["rows"]
    export_id = http.get(f"/api/jobs/{done['id']}").json()["spec"]["export_id"]
    shown = http.get(f"/api/jobs/{done['id']}").json()["spec"]
    assert shown.keys() == {"export_id", "training", "compiled", "notes"}
    assert str(system.data_dir) not in json.dumps(shown)
    for action, what in (("training.train", done["id"]), ("datasets.export", export_id)):
        assert listed(http, f"/api/control/audit-log?action={action}&object={what}", 1)


@pytest.mark.slow
def test_parameters_are_searched_and_a_rank_is_registered(system: RunningSystem) -> None:
    searched = system.run(
        "train",
        "--rounds",
        "5",
        "--params",
        "max_depth=3",
        "--search",
        "2",
        "--search-space",
        "eta=0.1:0.5",
    ).stdout
    assert searched.startswith("model ")
    assert "log_loss" in searched
    assert "best of 2 trials" in searched
    ranked = json.loads(
        system.run(
            "train",
            "--rounds",
            "5",
            "--objective",
            "ranking",
            "--target",
            "profit_lamports",
            "--json",
        ).stdout
    )
    assert {"ndcg_5", "best_first", "first_profit_lamports"} <= ranked["result"]["metrics"].keys()
    assert ranked["result"]["lineage"]["spec"]["objective"] == "ranking"


def test_a_training_that_cannot_succeed_says_why(system: RunningSystem, http: httpx.Client) -> None:
    assert http.post(TRAIN, json={}).status_code == 422
    assert http.post(TRAIN, json={"dataset": "nothing"}).status_code == 404
    assert http.get("/api/training/jobs/nothing").status_code == 404
    small = http.post("/api/datasets/export", json={"type": "tick", "part_rows": 999})
    assert (small.status_code, small.json()["code"], small.json()["field"]) == (
        400,
        "invalid_export",
        "part_rows",
    )
    long = http.post(TRAIN, json={"dataset": "training_examples", "search": {"timeout_s": 100_000}})
    assert (long.status_code, long.json()["field"]) == (400, "search.timeout_s")
    assert "TRAIN_SEARCH_MAX_S" in long.json()["detail"]
    refused = http.post(
        TRAIN,
        json={"dataset": "training_examples", "distributed": {"scheduler": "tcp://127.0.0.1:1"}},
    )
    assert (refused.status_code, refused.json()["code"]) == (403, "scheduler_not_allowed")
    assert "TRAIN_SCHEDULERS" in refused.json()["detail"]
    for options, reason in (
        (("--params", "eta=0.1", "--params", "max_depth=deep"), "'deep' is no number"),
        (("--distributed", "tcp://127.0.0.1:1"), "TRAIN_SCHEDULERS"),
        (
            ("--class-weight", "balanced", "--objective", "regression"),
            "class_weight is for objective binary",
        ),
    ):
        failed = system.run("train", *options, check=False)
        assert failed.returncode != 0
        assert reason in failed.stderr
    failed = system.run("train", "--features", "rivals,luck", check=False)
    assert failed.returncode == 1
    assert "no column 'luck'" in failed.stderr
    failed = system.run(
        "train",
        "--dataset",
        "tick",
        "--target",
        "last_price",
        "--objective",
        "regression",
        check=False,
    )
    assert "training_examples" in failed.stderr
    export_id = http.post(
        "/api/datasets/export", json={"type": "training_examples", "format": "csv"}
    ).json()["id"]
    failed = system.run("train", "--dataset", export_id, check=False)
    assert "export again with --format parquet" in failed.stderr
