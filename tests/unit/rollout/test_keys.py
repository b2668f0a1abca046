"""Tests of the deployments' idempotency keys, which other users cannot take."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from mev.control.routes import router
from mev.control.runtime_config import RuntimeConfig
from mev.server.app import create_app
from mev.server.security import build
from mev.settings import load
from mev.store.folder import DataFolder
from mev.store.redis import Redis
from tests.unit.rollout.plant import MODULE, Plant

MASTER_KEY = "the-master-key-of-the-tests"
SWAP = {
    "model_id": "mine",
    "model_path": "mine.mevt",
    "version": "1",
    "target": {"modules": [MODULE]},
    "sha256": "0" * 64,
}
STOP = {"scope": "all", "level": "HALTED", "reason": "enough"}


@pytest.fixture
async def http(plant: Plant) -> AsyncIterator[httpx.AsyncClient]:
    redis = Redis(f"unix://{plant.folder}/none", timeout_s=1)
    security = build(
        load(mev_data_dir=plant.folder, master_api_key=MASTER_KEY),
        DataFolder(plant.folder),
        redis,
        lambda: 0,
    )
    security.passwords.close()
    app = create_app(
        [router(plant.control, RuntimeConfig({}), report_interval_s=2.0)], [], security.gate
    )
    headers = {"X-API-Key": MASTER_KEY}
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://mev.example", headers=headers
    ) as client:
        yield client
    await redis.close()


@pytest.mark.parametrize(("path", "body"), [("model-swap", SWAP), ("kill-switch", STOP)])
async def test_the_key_of_a_coming_order_cannot_be_taken(
    plant: Plant, http: httpx.AsyncClient, path: str, body: dict[str, Any]
) -> None:
    await plant.enrol("a1")
    deployment = await plant.deploy(plant.model("new"), "shadow")
    before = len(plant.control.state.command_store.commands)
    answer = await http.post(
        f"/api/control/{path}",
        json=body,
        headers={"Idempotency-Key": f"deployment:{deployment.id}:1:0"},
    )
    assert (answer.status_code, answer.json()["field"]) == (422, "Idempotency-Key")
    assert len(plant.control.state.command_store.commands) == before
    assert (
        await http.post(f"/api/control/{path}", json=body, headers={"Idempotency-Key": "mine"})
    ).status_code == 202
