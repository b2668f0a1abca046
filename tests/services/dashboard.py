"""The dashboard in a real Chromium, with everything recorded that a page may not do."""

import contextlib
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from mev.sink.block import join
from mev.wire.pb.events_pb2 import Bundle, Opportunity
from tests.services import require
from tests.services.fleet import Fleet
from tests.services.service import free_port
from tests.services.system import RunningSystem
from tests.services.waits import until_document

AXE = Path(__file__).parents[2] / "web" / "dashboard" / "node_modules" / "axe-core" / "axe.min.js"
AGENTS = ["a1", "a2", "a3"]
ROLES = {
    "vera": "viewer",
    "olga": "operator",
    "oskar": "operator",
    "mia": "ml_engineer",
    "ada": "admin",
}
PASSWORD = "a long enough password"
HOLD_MS = 1300
PAGES = {
    "live": "Live",
    "figures": "Figures",
    "fleet": "Fleet",
    "orders": "Orders",
    "orders/policies": "Orders",
    "orders/configuration": "Orders",
    "jobs": "Jobs",
    "jobs/datasets": "Jobs",
    "models": "Models",
    "models/rollout": "Models",
    "audit": "Audit",
    "health": "Health",
    "access": "Access",
}
# The forms, by the page and the button that opens them.
FORMS = [
    ("jobs", "Train …"),
    ("jobs", "Export …"),
    ("orders", "Send an action …"),
    ("orders/policies", "New policy …"),
    ("orders/configuration", "Change a setting …"),
    ("fleet", "Resume all …"),
    ("health", "Disconnect …"),
    ("access", "New user …"),
    ("access", "New key …"),
]
_MOST_TABS = 100
_TABS_AT_ONCE = 20
_PATIENCE_MS = 30_000  # of a machine that runs many tests at once
_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
]
_WATCH = """window.stopped = [];
document.addEventListener("securitypolicyviolation", (event) =>
  stopped.push(`${event.violatedDirective} ${event.blockedURI}`));"""
_FOCUSED = "(element) => element === document.activeElement"
_WATCH_FOCUS = """() => {
  window.visited = new Set([document.activeElement]);
  document.addEventListener("focusin", (event) => visited.add(event.target));
}"""
# Rows and options are reached with the arrow keys.
_OUT_OF_REACH = """() => {
  const root = [...document.querySelectorAll("dialog[open]")].at(-1) ?? document.body;
  const shown = (each) =>
    each.checkVisibility({ visibilityProperty: true }) && !each.closest("[aria-hidden=true]");
  const controls = "button:enabled, a[href], input:enabled, select, textarea, summary";
  const missed = [...root.querySelectorAll(controls)].filter((each) => !visited.has(each));
  const others = [...root.querySelectorAll("*")].filter(
    (each) =>
      getComputedStyle(each).cursor === "pointer" &&
      !each.closest("button, a, summary, select, label, [role=row], [role=option]"),
  );
  return [...missed, ...others].filter(shown).map((each) => each.outerHTML.slice(0, 160));
}"""
# The browser itself reports refused requests and lost connections.
_OF_THE_BROWSER = re.compile(r"Failed to load resource|WebSocket connection to .* failed")


@dataclass
class Dashboard:
    """A browser window on the dashboard, signed in or not."""

    page: Page
    url: str
    hosts: set[str] = field(default_factory=set)
    messages: list[str] = field(default_factory=list)

    def watch(self) -> None:
        """Record requests, messages of the console and errors."""
        self.page.add_init_script(_WATCH)
        self.page.on("request", lambda request: self.hosts.add(urlsplit(request.url).netloc))
        self.page.on("console", lambda message: self.messages.append(message.text))
        self.page.on("pageerror", lambda error: self.messages.append(str(error)))

    def sign_in(self, name: str) -> None:
        """Sign in on the page that is shown."""
        self.page.fill("[name=username]", name)
        self.page.fill("[name=password]", PASSWORD)
        self.page.click("button:has-text('Sign in')")
        expect(self.page.get_by_role("navigation", name="Pages")).to_be_visible()

    def go(self, path: str, title: str) -> None:
        """Open a page of the dashboard."""
        self.page.goto(f"{self.url}/#/{path}")
        expect(self.page.get_by_role("heading", level=1, name=title)).to_be_visible()

    def hold(self, locator: Locator) -> None:
        """Press a button with the pointer until it acts."""
        locator.hover()
        self.page.mouse.down()
        self.page.wait_for_timeout(HOLD_MS)
        self.page.mouse.up()

    def dialog(self) -> Locator:
        """Return the dialog in front."""
        return self.page.locator("dialog[open]").last

    def focus(self, locator: Locator) -> None:
        """Reach a control with the Tab key alone."""
        expect(locator).to_be_enabled()
        for _ in range(_MOST_TABS):
            if locator.evaluate(_FOCUSED):
                return
            self.page.keyboard.press("Tab")
        raise AssertionError(f"the Tab key does not reach {locator}")

    def press(self, locator: Locator, key: str = "Enter") -> None:
        """Use a control with the keyboard alone."""
        self.focus(locator)
        self.page.keyboard.press(key)

    def enter(self, locator: Locator, text: str) -> None:
        """Fill in an input with the keyboard alone."""
        self.focus(locator)
        self.page.keyboard.press("Control+a")
        self.page.keyboard.type(text)

    def out_of_reach(self) -> list[str]:
        """Return the controls of the dialog in front, or of the page, that Tab does not reach."""
        self.page.evaluate(_WATCH_FOCUS)
        missed: list[str] = []
        for _ in range(0, _MOST_TABS, _TABS_AT_ONCE):
            for _ in range(_TABS_AT_ONCE):
                self.page.keyboard.press("Tab")
            missed = self.page.evaluate(_OUT_OF_REACH)
            if not missed:
                break
        return missed

    def violations(self) -> list[str]:
        """Return what axe finds wrong with the page, one line for each kind."""
        if not AXE.exists():
            require("axe-core is not installed; run `make web`")
        self.page.evaluate(AXE.read_text())
        found: list[dict[str, Any]] = self.page.evaluate(
            "async () => (await axe.run(document, { resultTypes: ['violations'] })).violations"
        )
        return [
            f"{each['id']}: {each['nodes'][0]['html'][:160]} ({len(each['nodes'])})"
            for each in found
        ]

    def check_quiet(self, *, refusals: bool = False) -> None:
        """Check that the page used only its own server, and neither erred nor broke its policy.

        With `refusals`, the browser may report refused requests and lost connections.
        """
        messages = [
            each for each in self.messages if not (refusals and _OF_THE_BROWSER.search(each))
        ]
        assert messages == []
        assert self.page.evaluate("() => stopped") == []
        assert self.hosts == {urlsplit(self.url).netloc}


class Windows:
    """Browser windows with sessions of their own."""

    def __init__(self, browser: Browser, system: RunningSystem) -> None:
        self._browser = browser
        self._system = system

    def open(
        self,
        name: str | None = None,
        *,
        width: int = 1440,
        height: int = 900,
        theme: Any = "light",
        touch: bool = False,
    ) -> Dashboard:
        """Open a window, and sign in as `name`."""
        context = self._browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=theme, has_touch=touch
        )
        shown = Dashboard(context.new_page(), self._system.url)
        shown.watch()
        shown.page.goto(f"{shown.url}/")
        if name is not None:
            shown.sign_in(name)
        return shown

    def close(self) -> None:
        """Close every window."""
        for context in self._browser.contexts:
            context.close()


@contextlib.contextmanager
def windows(system: RunningSystem) -> Iterator[Windows]:
    """Start a browser."""
    executable = shutil.which("chromium")
    if executable is None:
        require("there is no chromium; install the package of that name")
    expect.set_options(timeout=_PATIENCE_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=_FLAGS)
        try:
            yield Windows(browser, system)
        finally:
            browser.close()


def add_users(system: RunningSystem, roles: dict[str, str]) -> None:
    """Create users with `PASSWORD`."""
    with system.client() as http:
        for name, role in roles.items():
            body = {"name": name, "password": PASSWORD, "role": role}
            http.post("/api/auth/users", json=body).raise_for_status()


@contextlib.contextmanager
def running_fleet(folder: Path) -> Iterator[RunningSystem]:
    """Run a system in which raising needs two persons, with `AGENTS` and a user of each role."""
    running = RunningSystem(folder / "data", APPROVALS_REQUIRED="2", API_PORT=str(free_port()))
    running.start()
    fleet = Fleet(running)
    try:
        add_users(running, ROLES)
        for agent_id in AGENTS:
            fleet.start(agent_id)
        with running.client() as http:
            until_document(
                http,
                "/api/control/agents",
                lambda found: sum(each["online"] for each in found["items"]) == len(AGENTS) + 1,
            )
        yield running
    finally:
        fleet.close()
        running.stop()


def publish(system: RunningSystem, kind: str, *messages: Opportunity | Bundle) -> None:
    """Publish events over HTTP."""
    body = join([message.SerializeToString() for message in messages])
    headers = {"Content-Type": "application/x-protobuf"}
    with system.client() as http:
        http.post(f"/api/events/{kind}", content=body, headers=headers).raise_for_status()


def levels(system: RunningSystem) -> list[str]:
    """Return the levels that the agents report."""
    with system.client() as http:
        found = http.get("/api/control/agents").raise_for_status().json()["items"]
    return [each["level"] for each in found if each["agent_id"] in AGENTS]


def wait_for_levels(system: RunningSystem, level: str) -> None:
    """Wait until every agent reports `level`."""
    with system.client() as http:
        until_document(
            http,
            "/api/control/agents",
            lambda found: all(
                each["level"] == level for each in found["items"] if each["agent_id"] in AGENTS
            ),
        )


def resume(browser: Windows, scope: str, *, approve: bool = True) -> None:
    """Raise the level as two persons do."""
    first, second = browser.open("olga"), browser.open("oskar")
    first.go("fleet", "Fleet")
    first.page.click(
        f"button:has-text('{'Resume all' if scope == 'all' else 'Resume'} …') >> nth=0"
    )
    dialog = first.dialog()
    raise_button = dialog.get_by_role("button", name="Resume with ACTIVE")
    dialog.get_by_label("Reason").fill("checked by hand")
    expect(raise_button).to_be_disabled()
    dialog.get_by_label("This may raise risk").fill(scope)
    raise_button.click()
    expect(dialog.get_by_text("Nothing has changed yet")).to_be_visible()
    second.go("fleet", "Fleet")
    second.page.click("button:has-text('Review …')")
    second.dialog().get_by_label("This may raise risk").fill(scope)
    second.dialog().get_by_role("button", name="Approve" if approve else "Reject").click()
    expect(second.page.locator("dialog[open]")).to_have_count(0)
    first.check_quiet()
    second.check_quiet()
