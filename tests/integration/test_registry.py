"""Tests of registered models: commands, card in a browser, file downloads, key rotation."""

import base64
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
from playwright.sync_api import sync_playwright

from mev.crypto.trust import TrustStore
from mev.registry.registry import Registry
from mev.scoring.predictor import Predictor
from mev.wire.pb.envelope_pb2 import Envelope, KeySet
from tests.services import require
from tests.services.system import RunningSystem
from tests.services.waits import until_document

pytestmark = pytest.mark.slow

COUNT = 2_000
URL = "/api/training/models"
FEW = ("rivals", "tip_share", "latency_ms")


@dataclass(frozen=True)
class Models:
    """Two models of one export: of all features, and of a few."""

    all: str
    few: str


@pytest.fixture(scope="module")
def models(system: RunningSystem) -> Models:
    system.simulate(COUNT)
    with system.client() as http:
        whole = json.loads(
            system.run("train", "--rounds", "20", "--device", "cpu", "--json").stdout
        )
        export_id = (
            http.get(f"/api/jobs/{whole['id']}").raise_for_status().json()["spec"]["export_id"]
        )
    options = (
        "--dataset",
        export_id,
        "--features",
        ",".join(FEW),
        "--rounds",
        "10",
        "--device",
        "cpu",
        "--json",
    )
    return Models(
        all=whole["model_id"], few=json.loads(system.run("train", *options).stdout)["model_id"]
    )


@pytest.fixture
def agent(system: RunningSystem, http: httpx.Client) -> Iterator[httpx.Client]:
    """Give a client with the key of a machine that runs agents."""
    made = (
        http.post("/api/auth/keys", json={"name": "bot", "scopes": ["agents:enrol"]})
        .raise_for_status()
        .json()
    )
    with httpx.Client(
        base_url=system.url, headers={"X-API-Key": made["key"]}, timeout=30
    ) as client:
        yield client


def test_the_command_lists_compares_names_and_archives(
    system: RunningSystem, models: Models, http: httpx.Client
) -> None:
    listed = json.loads(system.run("models", "list", "--json").stdout)
    assert [item["id"] for item in listed["items"]] == [models.few, models.all]
    assert models.all in system.run("models", "list", "--target", "landed").stdout
    assert models.all not in system.run("models", "list", "--target", "tip_lamports").stdout
    assert "best names" in system.run("models", "alias", "best", models.all).stdout
    shown = system.run("models", "show", "best").stdout
    assert [line.split()[-1] for line in shown.splitlines() if line.startswith("best_profit ")] == [
        "SOL"
    ]
    assert models.all in shown
    assert "auc" in shown

    compared = json.loads(system.run("models", "compare", models.few, "best", "--json").stdout)
    assert (
        compared["same_validation"],
        compared["features"]["only_a"],
        len(compared["features"]["only_b"]),
    ) == (True, [], 9)
    auc = compared["metrics"]["auc"]
    assert auc["difference"] == pytest.approx(auc["b"] - auc["a"])
    assert "not to be compared" not in system.run("models", "compare", models.few, "best").stdout

    assert "move the alias first" in system.run("models", "archive", "best", check=False).stderr
    assert (
        "a deployment moves it"
        in system.run("models", "alias", "champion", models.all, check=False).stderr
    )
    system.run("models", "alias", "best", "--remove")
    system.run("models", "archive", models.few)
    assert models.few not in system.run("models", "list").stdout
    assert models.few in system.run("models", "list", "--archived").stdout
    system.run("models", "restore", models.few)
    assert len(http.get(URL).json()["items"]) == 2


_GROUND = "getComputedStyle(document.body).backgroundColor"


def test_the_card_in_a_browser(system: RunningSystem, models: Models, tmp_path: Path) -> None:
    executable = shutil.which("chromium")
    if executable is None:
        require("there is no chromium; install the package of that name")
    complaints: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=executable, args=["--headless", "--no-sandbox", "--disable-gpu"]
        )
        try:
            for scheme, ground in (("light", "rgb(246, 247, 249)"), ("dark", "rgb(15, 18, 22)")):
                login = {"username": "anybody", "password": system.key}
                context = browser.new_context(
                    color_scheme=scheme,  # type: ignore[arg-type]
                    http_credentials=login,  # type: ignore[arg-type]
                )
                page = context.new_page()
                page.on("console", lambda message: complaints.append(message.text))
                page.on("requestfailed", lambda request: complaints.append(request.url))
                answer = page.goto(f"{system.url}{URL}/{models.all}/card")
                assert answer is not None
                assert answer.status == 200
                assert page.evaluate(_GROUND) == ground
                saved = tmp_path / "card.html"
                saved.write_text(answer.text())
                page.goto(saved.as_uri())
                assert page.evaluate(_GROUND) == ground
                widths = page.evaluate("[...document.images].map((image) => image.naturalWidth)")
                assert len(widths) == 5  # importance is drawn by the page itself
                assert min(widths) > 100
                assert models.all in page.inner_text("header")
                page.set_viewport_size({"width": 400, "height": 800})
                assert page.evaluate("document.documentElement.scrollWidth") <= 400
                if folder := os.environ.get("MEV_SCREENSHOTS"):
                    page.set_viewport_size({"width": 1200, "height": 900})
                    page.screenshot(path=Path(folder) / f"card-{scheme}.png", full_page=True)
        finally:
            browser.close()
    assert complaints == []


def fetched(agent: httpx.Client, model_id: str, folder: Path) -> Predictor:
    """Return a model as loaded by a machine that has only its id, HTTP access and the key set."""
    key_set = Envelope.FromString(
        base64.b64decode(agent.get("/api/control/snapshot").json()["key_set"])
    )
    registry = Registry(folder, TrustStore(KeySet.FromString(key_set.payload)))
    folder.mkdir(exist_ok=True)

    def fetch(name: str) -> None:
        answer = agent.get(f"{URL}/{model_id}/files/{name}").raise_for_status()
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_bytes(answer.content)

    fetch(f"{model_id}.manifest.json")
    fetch(f"{registry.get(model_id).manifest.mevt_sha256}.mevt")
    return registry.load(model_id)


def test_a_machine_without_the_files_gets_them_and_nothing_else(
    models: Models, agent: httpx.Client, tmp_path: Path
) -> None:
    predictor = fetched(agent, models.few, tmp_path / "models")
    assert predictor.predict(np.zeros((1, 3), np.float32)).shape == (1,)
    (name,) = (path.name for path in (tmp_path / "models").glob("*.mevt"))
    url = f"{URL}/{models.few}/files/{name}"
    part = agent.get(url, headers={"Range": "bytes=0-15"})
    assert (part.status_code, len(part.content), part.headers["etag"]) == (
        206,
        16,
        f'"{name.partition(".")[0]}"',
    )
    assert agent.get(url, headers={"If-None-Match": part.headers["etag"]}).status_code == 304
    for path in (URL, f"{URL}/{models.few}", f"{URL}/{models.few}/card"):
        assert agent.get(path).json()["code"] == "forbidden"
    for name in (
        "registry.json",
        "..%2fcontrol%2fsigning-key",
        f"{models.all}.ubj",
        f"{models.few}.ubj",
    ):
        assert agent.get(f"{URL}/{models.few}/files/{name}").status_code == 404


def test_a_rotated_key_signs_again_what_the_old_one_signed(
    system: RunningSystem, models: Models, http: httpx.Client, agent: httpx.Client, tmp_path: Path
) -> None:
    system.run("models", "archive", models.few)
    rotated = system.run("rotate-key").stdout
    assert "2 models must be signed again" in rotated
    assert "`mev models sign --all`" in rotated
    refused = http.get(URL, params={"archived": True}).json()
    assert (refused["items"], set(refused["refused"])) == ([], {models.all, models.few})
    assert (
        agent.get(f"{URL}/{models.all}/files/{models.all}.manifest.json").json()["code"]
        == "unsigned_manifest"
    )
    results = json.loads(system.run("models", "sign", "--all", "--json").stdout)
    assert results == {models.all: "signed", models.few: "signed"}
    assert "no model is refused" in system.run("models", "sign", "--all").stdout
    after = http.get(URL, params={"archived": True}).json()
    assert ([item["id"] for item in after["items"]], after["refused"]) == (
        [models.few, models.all],
        {},
    )
    fetched(agent, models.all, tmp_path / "models")

    # An attacker with the old key and the folder adds a manifest later: its time is wrong.
    folder = system.data_dir / "models"
    manifest = folder / f"{models.all}.manifest.json"
    outer = json.loads(manifest.read_bytes())
    outer["signatures"] = outer["signatures"][:1]
    manifest.unlink()
    manifest.write_text(json.dumps(outer))
    failed = system.run("models", "sign", "--all", check=False)
    assert "after the key that signed it was replaced" in failed.stdout
    assert (failed.returncode, "refused as before: 1 of 1" in failed.stderr) == (1, True)

    found = until_document(
        http,
        "/api/control/audit-log?action=models.sign&limit=100",
        lambda page: len(page["items"]) >= 4,
    )["items"]
    assert sorted(item["outcome"] for item in found) == ["ok", "ok", "ok", "refused"]
