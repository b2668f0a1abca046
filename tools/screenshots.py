"""Take pictures of every page of the dashboard: ``make screenshots``.

A system with simulated data and three agents runs for it. All pictures go to `build/screenshots`;
those of the documentation replace the ones in `docs/pictures`.
"""

import re
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page

from tests.services.dashboard import FORMS, PAGES, Dashboard, Windows, add_users, windows
from tests.services.fleet import Fleet
from tests.services.system import RunningSystem
from tests.services.waits import until_document

ROOT = Path(__file__).parents[1]
ALL = ROOT / "build" / "screenshots"
DOCS = ROOT / "docs" / "pictures"
SIZES = {"desktop": (1440, 900), "phone": (360, 740)}
_SETTLE_MS = 2500
_GATHER_S = 60


def main() -> None:
    """Start a system, take the pictures, stop it."""
    ALL.mkdir(parents=True, exist_ok=True)
    DOCS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        system = RunningSystem(Path(folder) / "data")
        system.start("--demo")
        fleet = Fleet(system)
        try:
            _prepare(system, fleet)
            with windows(system) as browser:
                _take_for_docs(browser)
                _take_all(browser)
        finally:
            fleet.close()
            system.stop()


def _prepare(system: RunningSystem, fleet: Fleet) -> None:
    add_users(system, {"alice": "admin", "bob": "operator"})
    for number in range(1, 4):
        fleet.start(f"arb-{number}")
    with system.client() as http:
        until_document(http, "/api/control/agents", lambda found: len(found["items"]) == 4)
        for path, body in [
            (
                "kill-switch",
                {"level": "ACTIVE", "reason": "fills and balances checked"},
            ),
            (
                "policy",
                {
                    "policy_id": "risk",
                    "policy_type": "risk",
                    "thresholds": {"min_expected_profit_lamports": 100_000},
                },
            ),
            ("config", {"config_key": "log_level", "config_value": "INFO"}),
        ]:
            http.post(f"/api/control/{path}", json=body).raise_for_status()
        until_document(
            http,
            "/api/datasets",
            lambda found: any((each["rows"] or 0) > 20 * _GATHER_S for each in found["items"]),
        )
        training = {"dataset": "training_examples", "include_simulated": True, "rounds": 60}
        job = http.post("/api/training/train", json=training).raise_for_status().json()["id"]
        until_document(http, f"/api/jobs/{job}", lambda found: found["state"] == "succeeded")
        model = http.get("/api/training/models").json()["items"][0]["id"]
        body = {"stage": "shadow", "module": "arbitrage"}
        http.post(f"/api/training/models/{model}/deploy", json=body).raise_for_status()


def _take_all(browser: Windows) -> None:
    for size, (width, height) in SIZES.items():
        for theme in ("light", "dark"):
            window = browser.open(width=width, height=height, theme=theme, touch=size == "phone")
            _take(window.page, ALL / f"login-{size}-{theme}.png")
            window.sign_in("alice")
            for path, title in PAGES.items():
                window.go(path, title)
                _take(window.page, ALL / f"{path.replace('/', '-')}-{size}-{theme}.png")
            for path, name in FORMS:
                window.go(path, PAGES[path])
                window.page.get_by_role("button", name=name).first.click()
                form = re.sub(r"\W+", "-", name.lower()).strip("-")
                _take(window.page, ALL / f"form-{form}-{size}-{theme}.png")
                window.page.keyboard.press("Escape")
            _stop(window)
            _take(window.page, ALL / f"stop-{size}-{theme}.png")
            window.page.context.close()


def _take_for_docs(browser: Windows) -> None:
    window = browser.open("alice", width=1200, height=720)
    window.page.mouse.move(0, 0)  # the list stands still under the pointer
    _take(window.page, DOCS / "live.png")
    window.go("figures", "Figures")
    window.page.get_by_role("button", name="15 min").click()
    _take(window.page, DOCS / "figures.png")
    window.go("fleet", "Fleet")
    _stop(window)
    _take(window.page, DOCS / "stop.png")


def _stop(window: Dashboard) -> None:
    window.hold(window.page.locator("#stop"))
    window.page.get_by_text("agents acknowledged").wait_for()


def _take(page: Page, path: Path) -> None:
    page.wait_for_timeout(_SETTLE_MS)
    page.screenshot(path=path)
    # A page has few colours: a palette makes the file a third as large.
    Image.open(path).convert("RGB").quantize(128).save(path, optimize=True)
    sys.stdout.write(f"{path.relative_to(ROOT)}\n")


if __name__ == "__main__":
    main()
