"""Tests of the documentation page in a real browser under the Content-Security-Policy."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from playwright.sync_api import Page, expect, sync_playwright

from tests.services import require
from tests.services.system import RunningSystem, running_system

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
]
# Runs before any script of the page; what the policy stops is an event of the document.
WATCH = """window.stopped = [];
document.addEventListener("securitypolicyviolation", (event) =>
  stopped.push(`${event.violatedDirective} ${event.blockedURI}`));"""


@dataclass(slots=True)
class Seen:
    """Requests and policy violations of a page."""

    page: Page
    hosts: set[str] = field(default_factory=set)
    complaints: list[str] = field(default_factory=list)

    def watch(self) -> None:
        self.page.add_init_script(WATCH)
        self.page.on("request", lambda request: self.hosts.add(urlsplit(request.url).netloc))
        self.page.on(
            "console",
            lambda message: (
                self.complaints.append(message.text)
                if message.type in {"error", "warning"}
                else None
            ),
        )
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def stopped(self) -> list[str]:
        found: list[str] = self.page.evaluate("() => stopped")
        return found


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSystem]:
    with running_system(tmp_path_factory.mktemp("docs") / "data") as running:
        yield running


@pytest.fixture
def seen(system: RunningSystem) -> Iterator[Seen]:
    """Open the page with basic authentication by API key and return what it did."""
    executable = shutil.which("chromium")
    if executable is None:
        require("there is no chromium; install the package of that name")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=FLAGS)
        try:
            page = browser.new_page(
                viewport={"width": 1280, "height": 1600},
                http_credentials={"username": "anybody", "password": system.key},
            )
            found = Seen(page)
            found.watch()
            answer = page.goto(f"{system.url}/docs")
            assert answer is not None
            assert answer.status == 200
            assert "script-src 'self';" in answer.headers["content-security-policy"]
            page.wait_for_selector(".opblock", timeout=90_000)
            yield found
        finally:
            browser.close()


def test_the_page_shows_every_operation_and_breaks_no_rule(
    system: RunningSystem, seen: Seen
) -> None:
    document = (
        httpx.get(f"{system.url}/openapi.json", headers={"X-API-Key": system.key})
        .raise_for_status()
        .json()
    )
    expect(seen.page.locator(".opblock")).to_have_count(
        sum(len(operations) for operations in document["paths"].values())
    )
    assert "/api/control/kill-switch" in seen.page.inner_text("#swagger-ui")
    seen.page.click(
        "#operations-control-kill_switch_api_control_kill_switch_post .opblock-summary-control"
    )
    seen.page.wait_for_selector(".opblock-body .model-example, .opblock-body .highlight-code")
    if folder := os.environ.get("MEV_SCREENSHOTS"):
        seen.page.screenshot(path=Path(folder) / "docs.png")
    assert seen.hosts == {urlsplit(system.url).netloc}
    assert (seen.stopped(), seen.complaints) == ([], [])


@pytest.mark.slow
def test_an_operation_can_be_tried_with_a_key(system: RunningSystem, seen: Seen) -> None:
    page = seen.page
    page.click("button.authorize")
    page.fill(".auth-container input[type=text] >> nth=0", system.key)
    page.click(".auth-container .modal-btn.authorize >> nth=0")
    page.click(".modal-ux .btn-done >> nth=0")
    page.click("[id^=operations-control-agents_] .opblock-summary-control")
    page.click(".try-out__btn")
    with page.expect_response("**/api/control/agents*") as answered:
        page.click(".opblock-body .execute")
    assert answered.value.status == 200
    assert answered.value.request.headers["x-api-key"] == system.key
    page.wait_for_selector(".live-responses-table .response-col_status:has-text('200')")
    if folder := os.environ.get("MEV_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / "docs-tried.png")
    assert seen.hosts == {urlsplit(system.url).netloc}
    assert (seen.stopped(), seen.complaints) == ([], [])
