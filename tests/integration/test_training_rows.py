"""Tests of the rows that a training uses: filtered ones, and only real ones where there are any."""

import math
from collections.abc import Sequence

import httpx
import pytest
from google.protobuf import json_format

from mev.simulate.model import EPOCH_NS, Market
from mev.wire.pb.events_pb2 import Bundle, Opportunity
from tests.services.system import RunningSystem
from tests.services.waits import until_document

COUNT = 2_000
TRAIN = ("train", "--rounds", "5", "--device", "cpu")


@pytest.fixture(scope="module", autouse=True)
def _events(system: RunningSystem) -> None:
    """Put a simulated market in."""
    system.run("simulate", "--count", str(COUNT), "--seed", "7", "--fast")
    with system.client() as http:
        _wait_for(http, COUNT)


def _wait_for(http: httpx.Client, rows: int) -> None:
    names = ("opportunity", "bundle")
    until_document(
        http,
        "/api/datasets",
        lambda page: all(
            (item["rows"] or 0) >= rows for item in page["items"] if item["type"] in names
        ),
    )


def _put(http: httpx.Client, name: str, events: Sequence[Opportunity | Bundle]) -> None:
    body = [json_format.MessageToDict(event, preserving_proto_field_name=True) for event in events]
    accepted = http.post(f"/api/events/{name}", json=body).json()["accepted"]
    assert accepted == len(body)


def _real_market(http: httpx.Client) -> None:
    """Put in what would be events of a chain, and a bundle on paper for each of them."""
    market = Market(8, 20.0, EPOCH_NS + 86_400_000_000_000)
    steps = [market.step() for _ in range(COUNT)]
    for _, opportunity, bundle in steps:
        opportunity.features[:] = [
            0.0 if math.isnan(value) else value for value in opportunity.features
        ]
        opportunity.simulated = bundle.simulated = False
    _put(http, "opportunity", [opportunity for _, opportunity, _ in steps])
    _put(http, "bundle", [bundle for *_, bundle in steps])
    papers = [Bundle() for _ in steps]
    for paper, (_, _, bundle) in zip(papers, steps, strict=True):
        paper.CopyFrom(bundle)
        paper.bundle_id, paper.agent_id, paper.simulated = (
            f"paper:{bundle.bundle_id}",
            "paper",
            True,
        )
    _put(http, "bundle", papers)


@pytest.mark.slow
def test_simulated_rows_are_left_out_as_soon_as_real_ones_exist_and_it_is_said(
    system: RunningSystem, http: httpx.Client
) -> None:
    first = system.run(*TRAIN)
    assert (
        "all rows are simulated: the figures of the model are those of a simulated market"
        in first.stderr
    )
    filtered = system.run(*TRAIN, "--filter", 'kind == "arbitrage"').stdout
    assert "of them simulated" in filtered

    _real_market(http)
    _wait_for(http, 2 * COUNT)
    job = http.post(
        "/api/training/train", json={"dataset": "training_examples", "rounds": 5, "device": "cpu"}
    ).json()
    assert job["notes"] == [
        (
            "simulated rows are left out, because there are real ones; include_simulated"
            " (--include-simulated) learns from both"
        )
    ]
    second = system.run(*TRAIN)
    assert job["notes"][0] in second.stderr
    found = until_document(
        http,
        f"/api/training/jobs/{job['id']}",
        lambda found: found["job"]["state"] == "succeeded",
    )
    rows = found["result"]["rows"]
    assert (rows["simulated"], rows["train"] + rows["embargo"] + rows["validation"]) == (0, COUNT)
    assert job["notes"][0] in http.get(f"/api/jobs/{job['id']}/log").text
    model = http.get(f"/api/training/models/{found['model_id']}").json()
    assert model["lineage"]["rows"]["simulated"] == 0

    both = system.run(*TRAIN, "--include-simulated", "--json")
    assert '"simulated_left_out":0' in both.stdout
    assert "simulated rows are left out" not in both.stderr
    one = http.post(
        "/api/training/train",
        json={
            "dataset": "training_examples",
            "rounds": 5,
            "filter": ["simulated == true"],
            "labels": "market",
            "label_slots": 5,
        },
    )
    assert one.json()["notes"] == []


def test_filter_is_refused_for_an_export_that_is_there_and_where_it_says_nothing(
    system: RunningSystem, http: httpx.Client
) -> None:
    export_id = http.post("/api/datasets/export", json={"type": "training_examples"}).json()["id"]
    refused = http.post("/api/training/train", json={"dataset": export_id, "filter": ["slot > 0"]})
    assert (refused.status_code, refused.json()["code"], refused.json()["field"]) == (
        400,
        "invalid_training",
        "filter",
    )
    bad = system.run(*TRAIN, "--filter", "nothing == 1", check=False)
    assert bad.returncode == 1
    assert "no field" in bad.stderr
    labels = http.post("/api/datasets/export", json={"type": "bundle", "labels": "agent"})
    assert (labels.status_code, labels.json()["code"]) == (400, "invalid_export")
