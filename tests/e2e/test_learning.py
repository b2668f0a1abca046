"""Tests from events to a model in production at three agents, over HTTP and by commands."""

import io
import json
import signal
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xgboost as xgb

from mev.wire.features import OPPORTUNITY
from tests.services.fleet import Fleet
from tests.services.system import MEV, RunningSystem, running_system
from tests.services.waits import until_document

pytestmark = pytest.mark.slow

OPPORTUNITIES = 200_000
AGENTS = ("a1", "a2", "a3")
TOLERANCE = 2e-6
# Loose rules for a fast test; the latency bounds allow for a busy machine.
RULES = {"min_scored": 2000, "hold_s": 0.5, "max_latency_p99_us": 1_000_000}
UNDER_WAY = {"rolling_out", "watching"}


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSystem]:
    """Run everything, with a market's past in it."""
    with running_system(
        tmp_path_factory.mktemp("mev") / "data", REPORT_INTERVAL_S="0.5", DEPLOY_WATCH_S="0.2"
    ) as running:
        running.run("simulate", "--count", str(OPPORTUNITIES), "--fast")
        with running.client() as http:
            until_document(
                http, "/api/datasets", lambda page: rows_of(page, "opportunity") == OPPORTUNITIES
            )
        yield running


@pytest.fixture(scope="module")
def fleet(system: RunningSystem) -> Iterator[Fleet]:
    """Give three agents that may trade, and a market that goes on."""
    agents = Fleet(system)
    for agent_id in AGENTS:
        agents.start(agent_id)
    agents.run("market", MEV, "simulate", "--rate", "500", "--live", "--seed", "2")
    with system.client() as http:
        until_document(
            http,
            "/api/control/agents",
            lambda page: (
                sum(agent["online"] for agent in page["items"] if agent["agent_id"] in AGENTS) == 3
            ),
        )
        raised = http.post(
            "/api/control/kill-switch", json={"scope": "all", "level": "ACTIVE", "reason": "start"}
        ).json()["id"]
        until_document(
            http,
            f"/api/control/commands/{raised}",
            lambda command: command["states"]["SYNCED"] == 3,
        )
    yield agents
    agents.close()


def rows_of(page: dict[str, Any], name: str) -> int | None:
    return next((item["rows"] for item in page["items"] if item["type"] == name), None)


def ended(http: httpx.Client, job_id: str) -> None:
    job = until_document(
        http,
        f"/api/jobs/{job_id}",
        lambda job: job["state"] in {"succeeded", "failed"},
    )
    assert job["state"] == "succeeded", job["error"]


def deploy(http: httpx.Client, model: str, stage: str, **more: Any) -> dict[str, Any]:
    """Bring a model to a stage; return the deployment when its rules hold, or do not."""
    answer = http.post(
        f"/api/training/models/{model}/deploy", json={"stage": stage, "rules": RULES, **more}
    )
    assert answer.status_code == 202, answer.text
    deployment: dict[str, Any] = until_document(
        http,
        f"/api/training/deployments/{answer.json()['id']}",
        lambda found: found["state"] not in UNDER_WAY,
    )
    return deployment


def models_of(http: httpx.Client) -> list[str | None]:
    """Return what decides at each agent."""
    agents = http.get("/api/control/agents").raise_for_status().json()["items"]
    return [
        agent["model"] and agent["model"]["id"] for agent in agents if agent["agent_id"] in AGENTS
    ]


def exported(http: httpx.Client, **request: Any) -> pa.Table:
    """Return all rows of an export."""
    export = http.post("/api/datasets/export", json=request).raise_for_status().json()
    ended(http, export["id"])
    files = http.get(f"/api/datasets/export/{export['id']}").raise_for_status().json()["files"]
    parts = [
        http.get(file).raise_for_status().content for file in files if file.endswith(".parquet")
    ]
    return pa.concat_tables(pq.read_table(io.BytesIO(part)) for part in parts)


def test_over_http_alone(system: RunningSystem, fleet: Fleet) -> None:
    with system.client() as http:
        export = (
            http.post("/api/datasets/export", json={"type": "training_examples"})
            .raise_for_status()
            .json()["id"]
        )
        ended(http, export)
        job = (
            http.post(
                "/api/training/train", json={"dataset": export, "target": "landed", "rounds": 60}
            )
            .raise_for_status()
            .json()["id"]
        )
        ended(http, job)
        training = http.get(f"/api/training/jobs/{job}").json()
        assert training["result"]["metrics"]["auc"] >= 0.8
        model = training["model_id"]

        shadow = deploy(http, model, "shadow", share=0.5)
        assert (shadow["state"], models_of(http)) == ("ready", [None] * 3)
        canary = deploy(http, model, "canary", share=0.3)
        assert canary["state"] == "ready"
        assert sorted(models_of(http), key=str) == sorted([None, None, model], key=str)
        production = deploy(http, model, "production")
        assert (production["state"], models_of(http)) == ("done", [model] * 3)
        answers = [
            one
            for step in production["steps"]
            for command in step["commands"]
            for one in command["deliveries"]
        ]
        assert (
            len(answers) == 3 + 1 + 3 + 3
        )  # the shadow, the canary, production, and the shadow that ends with it
        assert {one["state"] for one in answers} == {"SYNCED"}
        assert http.get("/api/training/models/champion").json()["id"] == model
        trail = (
            http.get("/api/control/audit-log", params={"action": "control.model"})
            .raise_for_status()
            .json()["items"]
        )
        assert len(trail) == 4


def test_by_commands_alone(system: RunningSystem, fleet: Fleet) -> None:
    export = json.loads(system.run("export", "training_examples", "--json").stdout)["id"]
    train = (
        "train",
        "--dataset",
        export,
        "--target",
        "landed",
        "--rounds",
        "20",
        "--seed",
        "7",
        "--compiled",
        "--json",
    )
    training = json.loads(system.run(*train).stdout)
    assert training["result"]["metrics"]["auc"] >= 0.8
    model = training["model_id"]
    rules = [word for name, value in RULES.items() for word in ("--rule", f"{name}={value}")]
    go = ("deploy", model, "--form", "so", *rules, "--wait", "--json")

    shadow = json.loads(system.run(*go, "--stage", "shadow", "--share", "1").stdout)
    assert shadow["state"] == "ready"
    fleet.signal("market", signal.SIGSTOP)  # what is exported must rest
    _compare_scores(system, {"": shadow["previous_model_id"], "shadow_": model})
    fleet.signal("market", signal.SIGCONT)
    assert (
        json.loads(system.run(*go, "--stage", "canary", "--share", "0.5").stdout)["state"]
        == "ready"
    )
    production = json.loads(system.run(*go, "--stage", "production").stdout)
    assert (production["state"], production["file"][-3:]) == ("done", ".so")
    back = json.loads(
        system.run(
            "deploy",
            model,
            "--stage",
            "rollback",
            "--wait",
            "--json",
            "--reason",
            "as a test",
            check=False,
        ).stdout
    )
    assert back["state"] == "rolled_back"
    assert back["previous_model_id"] in system.run("models", "list", "--json").stdout
    with system.client() as http:
        until_document(
            http,
            "/api/control/agents",
            lambda _: models_of(http) == [back["previous_model_id"]] * 3,
        )


def _compare_scores(system: RunningSystem, models: dict[str, str]) -> None:
    """Check 100,000 scores or more of each model, by the prefix of its columns, against XGBoost."""
    asked = 40_000
    with system.client() as http:
        stored = rows_of(http.get("/api/datasets").json(), "score") or 0
        system.run("simulate", "--count", str(asked), "--fast", "--live", "--seed", "3")
        until_document(
            http,
            "/api/datasets",
            lambda page: (rows_of(page, "score") or 0) - stored >= 3 * asked,
        )
        scores = exported(
            http,
            type="score",
            columns=["opportunity_id", "model_id", "score", "shadow_model_id", "shadow_score"],
        )
        opportunities = exported(http, type="opportunity", columns=["id", "features"])
        place = {name: row for row, name in enumerate(opportunities["id"].to_pylist())}
        features = np.array(opportunities["features"].to_pylist(), np.float32)
        rows = features[[place[name] for name in scores["opportunity_id"].to_pylist()]]
        assert np.isnan(rows).any(axis=1).sum() > 1000
        for role, model in models.items():
            mine = np.array(scores[f"{role}model_id"].to_pylist()) == model
            assert mine.sum() >= 100_000
            assert http.get(f"/api/training/models/{model}").json()["features"] == list(
                OPPORTUNITY.names
            )
            booster = xgb.Booster(model_file=bytearray(_ubj(http, model)))
            expected = booster.inplace_predict(rows[mine], missing=np.nan)
            assert np.abs(scores[f"{role}score"].to_numpy()[mine] - expected).max() <= TOLERANCE


def _ubj(http: httpx.Client, model: str) -> bytes:
    return http.get(f"/api/training/models/{model}/files/{model}.ubj").raise_for_status().content
