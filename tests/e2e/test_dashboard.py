"""Tests of the dashboard in a real browser, against the running system with agents."""

import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from playwright.sync_api import expect

from mev.wire.pb.events_pb2 import Bundle, Opportunity
from tests.services.dashboard import (
    FORMS,
    PAGES,
    Windows,
    levels,
    publish,
    resume,
    running_fleet,
    wait_for_levels,
    windows,
)
from tests.services.system import RunningSystem
from tests.services.waits import until, until_document

MARKUP = "<img src=x onerror=\"document.title='broken'\"><script>alert(1)</script>"
SHORT_MARKUP = "<b onclick=alert(1)>key</b>"


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSystem]:
    with running_fleet(tmp_path_factory.mktemp("dashboard")) as running:
        yield running


@pytest.fixture(scope="module")
def chromium(system: RunningSystem) -> Iterator[Windows]:
    with windows(system) as found:
        yield found


@pytest.fixture
def browser(chromium: Windows) -> Iterator[Windows]:
    yield chromium
    chromium.close()


def test_signing_in_shows_the_first_password_and_wrong_passwords(
    system: RunningSystem, browser: Windows
) -> None:
    window = browser.open()
    window.page.get_by_text("First start?").click()
    expect(window.page.get_by_text("first-password")).to_be_visible()
    window.check_quiet()
    window.page.fill("[name=username]", "vera")
    window.page.fill("[name=password]", "wrong")
    window.page.click("button:has-text('Sign in')")
    expect(window.page.get_by_role("alert")).to_have_text("The name or the password is wrong.")
    window.sign_in("vera")
    window.check_quiet(refusals=True)


def test_live_page_shows_events_as_text_counts_them_and_filters(
    system: RunningSystem, browser: Windows
) -> None:
    window = browser.open("vera")
    expect(window.page.get_by_text("over WebSocket")).to_be_visible()
    mark = f"{time.time_ns()}"
    publish(
        system,
        "bundle",
        *(
            Bundle(
                bundle_id=f"{mark}-{number}",
                agent_id=MARKUP,
                error=MARKUP,
                profit_lamports=number * 1_000_000_001,
                slot=7,
            )
            for number in range(5)
        ),
    )
    rows = window.page.locator("[role=row][aria-rowindex]").filter(has_text="bundle")
    expect(rows).to_have_count(5)
    expect(rows.first).to_contain_text("<img src=x onerror=")
    expect(rows.filter(has_text="+4.000000").locator("[title*=lamports]").first).to_have_attribute(
        "title", "4\u202f000\u202f000\u202f004 lamports"
    )
    expect(window.page.locator(".counters")).to_contain_text("5 seen")
    expect(window.page.locator(".counters")).to_contain_text("0 lost")
    rows.first.click()
    aside = window.page.get_by_label("The chosen event")
    expect(aside).to_contain_text("<script>alert(1)</script>")

    condition = window.page.get_by_label("Filter: a condition")
    window.page.keyboard.press("Escape")
    condition.fill("nonsense >= 3")
    condition.press("Enter")
    expect(window.page.get_by_role("alert")).to_contain_text("nonsense")
    for name in ["Opportunities", "Arbitrages", "Sandwiches", "Liquidations"]:
        window.page.get_by_role("button", name=name, exact=True).click()
    condition.fill("profit_lamports >= 3 SOL")
    condition.press("Enter")
    expect(window.page.get_by_label("Remove the condition")).to_be_visible()
    window.page.get_by_role("button", name="Pause").click()
    publish(
        system,
        "bundle",
        *(
            Bundle(bundle_id=f"{mark}-more-{number}", profit_lamports=number * 1_000_000_000)
            for number in range(6)
        ),
    )
    window.page.get_by_role("button", name="Resume").click()
    expect(window.page.locator(".counters")).to_contain_text("3 seen")
    expect(window.page).not_to_have_title("broken")
    window.check_quiet()


def test_counters_are_exact_after_a_burst(system: RunningSystem, browser: Windows) -> None:
    window = browser.open("vera")
    expect(window.page.get_by_text("over WebSocket")).to_be_visible()
    mark, count = time.time_ns(), 20_000
    for first in range(0, count, 1000):
        numbers = range(first, first + 1000)
        publish(system, "bundle", *(Bundle(bundle_id=f"{mark}-{number}") for number in numbers))

    def counters() -> dict[str, int]:
        text = window.page.locator(".counters").inner_text().replace("\u202f", "")
        return {name: int(value) for value, name in re.findall(r"(\d+)\s+(seen|shown|lost)", text)}

    found = until(counters, lambda found: found["seen"] + found["lost"] >= count)
    assert found["seen"] + found["lost"] == count
    assert found["shown"] == min(found["seen"], 5000)
    assert window.page.locator("[role=row][aria-rowindex]").count() < 100
    window.check_quiet()


def test_kill_switch_is_confirmed_by_every_agent(system: RunningSystem, browser: Windows) -> None:
    resume(browser, "all")
    wait_for_levels(system, "ACTIVE")
    window = browser.open("olga")
    window.page.keyboard.down("k")
    window.page.wait_for_timeout(1300)
    window.page.keyboard.up("k")
    dialog = window.dialog()
    expect(dialog.get_by_text("3 of 3 agents acknowledged")).to_be_visible(timeout=30_000)
    expect(dialog.locator("tbody tr")).to_have_count(3)
    expect(dialog.locator("tbody tr").first).to_contain_text(" ms")
    wait_for_levels(system, "HALTED")
    window.check_quiet()


def test_short_press_stops_nothing_and_says_the_blast_radius(
    system: RunningSystem, browser: Windows
) -> None:
    window = browser.open("olga")
    window.page.click("#stop")
    dialog = window.dialog()
    expect(dialog).to_contain_text("3 agents, all reachable")
    dialog.get_by_role("button", name="One agent").click()
    dialog.get_by_label("Agent", exact=True).fill("a2")
    expect(dialog).to_contain_text("1 agent, all reachable")
    dialog.get_by_role("button", name="NO_NEW").click()
    dialog.get_by_label("Reason").fill(MARKUP)
    window.hold(dialog.get_by_role("button", name="Hold to set NO_NEW for a2"))
    expect(dialog.get_by_text("1 of 1 agent acknowledged")).to_be_visible(timeout=30_000)
    window.page.keyboard.press("Escape")
    window.go("orders", "Orders")
    expect(window.page.locator("tbody tr").first).to_contain_text(f"NO_NEW: {MARKUP}")
    window.check_quiet()


def test_rejected_raise_changes_nothing(system: RunningSystem, browser: Windows) -> None:
    before = levels(system)
    resume(browser, "all", approve=False)
    assert levels(system) == before


def test_policy_is_compared_sent_acknowledged_and_changed(
    system: RunningSystem, browser: Windows
) -> None:
    window = browser.open("olga")
    window.go("orders/policies", "Orders")
    for value in ["100000", "200000"]:
        if value == "100000":
            window.page.get_by_role("button", name="New policy …").click()
            form = window.dialog()
            form.get_by_label("Name").fill("risk")
            form.get_by_label("Type").fill("risk")
            form.get_by_role("button", name="Add a threshold").click()
            form.get_by_label("Threshold", exact=True).fill("min_expected_profit_lamports")
        else:
            window.page.get_by_role("link", name="risk", exact=True).click()
            window.page.get_by_role("button", name="Change …").click()
            form = window.dialog()
        form.get_by_label("Value of min_expected_profit_lamports").fill(value)
        form.get_by_role("button", name="Review the changes").click()
        expect(window.dialog()).to_contain_text("thresholds.min_expected_profit_lamports")
        expect(window.dialog()).to_contain_text(value)
        window.dialog().get_by_role("button", name="Send").click()
        expect(window.dialog().get_by_text("3 of 3 agents acknowledged")).to_be_visible()
        window.page.keyboard.press("Escape")
        window.go("orders/policies", "Orders")
    expect(window.page.locator("tbody tr").first).to_contain_text("in force")
    window.check_quiet()


def test_action_form_is_made_from_the_declared_schema(
    system: RunningSystem, browser: Windows
) -> None:
    window = browser.open("olga")
    window.go("orders", "Orders")
    window.page.get_by_role("button", name="Send an action …").click()
    form = window.dialog()
    form.get_by_label("Action").select_option("cancel_all")
    form.get_by_role("button", name="Review").click()
    window.dialog().get_by_role("button", name="Send").click()
    expect(window.dialog().get_by_text("3 of 3 agents acknowledged")).to_be_visible(timeout=30_000)
    window.check_quiet()


def test_control_plane_setting_reaches_its_replica(system: RunningSystem, browser: Windows) -> None:
    window = browser.open("olga")
    window.go("orders/configuration", "Orders")
    window.page.get_by_role("button", name="Change a setting …").click()
    form = window.dialog()
    form.get_by_label("Setting").select_option("batch_window_ms")
    form.locator("input").last.fill("20")
    form.get_by_role("button", name="Review the change").click()
    window.dialog().get_by_role("button", name="Send").click()
    expect(window.dialog().get_by_text("1 of 1 agent acknowledged")).to_be_visible(timeout=30_000)
    window.check_quiet()


def test_export_runs_as_a_job_to_its_files(system: RunningSystem, browser: Windows) -> None:
    window = browser.open("mia")
    publish(system, "bundle", Bundle(bundle_id=f"{time.time_ns()}", slot=1))
    window.go("jobs", "Jobs")
    window.page.get_by_role("button", name="Export …").click()
    form = window.dialog()
    form.get_by_label("Format").select_option("ndjson")
    form.get_by_role("button", name="Estimate").click()
    expect(form.get_by_role("status")).to_contain_text("row")
    form.get_by_role("button", name="Export", exact=True).click()
    expect(window.dialog().get_by_text("succeeded")).to_be_visible(timeout=90_000)
    expect(window.dialog().get_by_role("link", name=".ndjson")).to_be_visible()
    window.check_quiet()


def test_audit_record_is_verified_in_the_browser(system: RunningSystem, browser: Windows) -> None:
    window = browser.open("olga")
    window.go("audit", "Audit")
    window.page.get_by_role("textbox", name="Action").fill("user.add")
    window.page.get_by_role("button", name="Search").click()
    first = window.page.locator("tbody tr").filter(has_text="user.add").first
    expect(first).to_be_visible()
    deadline = time.monotonic() + 60
    verified = window.page.get_by_text("The record is in the log, under a signed checkpoint.")
    while not verified.is_visible():  # records of the last seconds are in no checkpoint yet
        assert time.monotonic() < deadline, window.dialog().inner_text()
        first.get_by_role("button", name="verify").click()
        window.page.wait_for_timeout(1500)
        if not verified.is_visible():
            window.page.keyboard.press("Escape")
    expect(window.dialog().get_by_role("listitem")).to_have_count(4)
    window.check_quiet(refusals=True)


def test_health_shows_dependencies_and_disconnects_a_client(
    system: RunningSystem, browser: Windows
) -> None:
    other = browser.open("vera")
    expect(other.page.get_by_text("over WebSocket")).to_be_visible()
    window = browser.open("olga")
    window.go("health", "Health")
    expect(window.page.get_by_label("Dependencies")).to_contain_text("clickhouse")
    row = window.page.locator("tbody tr").filter(has_text="vera")
    expect(row).to_have_count(1, timeout=30_000)  # those of closed windows are gone
    row.get_by_role("button", name="Disconnect …").click()
    window.dialog().get_by_role("button", name="Disconnect", exact=True).click()
    expect(other.page.get_by_role("alert")).to_contain_text("Connection lost", timeout=15_000)
    other.page.get_by_role("button", name="Connect again").click()
    expect(other.page.get_by_role("alert")).to_have_count(0)
    window.check_quiet()


def test_key_is_shown_once_and_revoked(system: RunningSystem, browser: Windows) -> None:
    window = browser.open("ada")
    window.go("access", "Access")
    window.page.get_by_role("button", name="New key …").click()
    form = window.dialog()
    form.get_by_label("Name").fill(SHORT_MARKUP)
    form.get_by_label("metrics:read").check()
    form.get_by_role("button", name="Create").click()
    expect(window.dialog()).to_contain_text("mev_")
    window.page.keyboard.press("Escape")
    row = window.page.locator("tbody tr").filter(has_text=SHORT_MARKUP)
    expect(row).to_contain_text("active")
    assert "mev_" not in window.page.content()
    row.get_by_role("button", name="Revoke …").click()
    window.dialog().get_by_role("button", name="Revoke", exact=True).click()
    expect(row).to_contain_text("revoked")
    window.check_quiet()


def test_user_is_created_and_disabled(system: RunningSystem, browser: Windows) -> None:
    window = browser.open("ada")
    window.go("access", "Access")
    window.page.get_by_role("button", name="New user …").click()
    form = window.dialog()
    form.get_by_label("Name").fill("nina")
    form.get_by_label("First password").fill("a long enough password")
    form.get_by_label("Role").select_option("analyst")
    form.get_by_role("button", name="Create").click()
    row = window.page.get_by_role("group", name="Users").locator("tbody tr").filter(has_text="nina")
    expect(row).to_contain_text("analyst")
    expect(window.page.get_by_role("button", name="New user …")).to_be_focused()
    row.get_by_role("button", name="Change …").click()
    window.dialog().get_by_role("button", name="Disable").click()
    expect(row).to_contain_text("disabled")
    window.check_quiet()


def test_what_a_role_may_not_do_is_absent(system: RunningSystem, browser: Windows) -> None:
    window = browser.open("vera")
    nav = window.page.get_by_role("navigation", name="Pages")
    expect(nav.get_by_role("link", name="Audit")).to_have_count(0)
    expect(window.page.locator("#stop")).to_have_count(0)
    for path, title in PAGES.items():
        if path != "audit":
            window.go(path, title)
            window.page.wait_for_timeout(300)
            for name in ["Resume", "Stop …", "New policy", "Send an action", "New user"]:
                found = window.page.get_by_role("button", name=name)
                expect(found).to_have_count(0)
    window.page.keyboard.press("k")
    expect(window.page.locator("dialog[open]")).to_have_count(0)
    window.check_quiet()


@pytest.mark.parametrize(
    ("width", "height", "theme"),
    [
        (1440, 900, "light"),
        pytest.param(1440, 900, "dark", marks=pytest.mark.slow),
        pytest.param(360, 740, "light", marks=pytest.mark.slow),
        (360, 740, "dark"),
    ],
)
def test_pages_have_no_accessibility_violation_and_do_not_overflow(
    system: RunningSystem, browser: Windows, width: int, height: int, theme: str
) -> None:
    publish(system, "opportunity", Opportunity(id=f"{time.time_ns()}", kind="arbitrage", slot=3))
    window = browser.open("ada", width=width, height=height, theme=theme)
    found: dict[str, Any] = {}
    for path, title in PAGES.items():
        window.go(path, title)
        window.page.wait_for_timeout(700)
        found[path] = window.violations()
        if (width, theme) == (1440, "light"):
            found[path] += window.out_of_reach()
        if window.page.evaluate("() => document.documentElement.scrollWidth > innerWidth"):
            found[path].append("it is wider than the window")
    window.page.click("#stop")
    found["stop"] = window.violations()
    assert {path: each for path, each in found.items() if each} == {}
    window.check_quiet()


def test_every_page_is_reached_by_keyboard(system: RunningSystem, browser: Windows) -> None:
    window = browser.open("ada")
    for number, title in enumerate(dict.fromkeys(PAGES.values()), 1):
        window.page.keyboard.press(str(number))
        expect(window.page.get_by_role("heading", level=1, name=title)).to_be_visible()
    window.page.keyboard.press("?")
    expect(window.dialog()).to_contain_text("Ctrl K")
    window.page.keyboard.press("Escape")
    window.page.keyboard.press("Control+k")
    window.page.keyboard.type("a2")
    window.page.keyboard.press("Enter")
    expect(window.dialog()).to_contain_text("clock offset")
    window.page.keyboard.press("Escape")
    window.page.keyboard.press("t")
    expect(window.page.locator("html")).to_have_attribute("data-theme", "dark")
    window.check_quiet()


CLOSE_AND_JUMP = """() => {
    document.querySelector("dialog[open]").close();
    window.dispatchEvent(new KeyboardEvent("keydown", { key: "k", ctrlKey: true }));
}"""


def test_dialog_opened_while_another_closes_stays_open(browser: Windows) -> None:
    window = browser.open("ada")
    window.page.keyboard.press("?")
    expect(window.dialog()).to_contain_text("Ctrl K")
    window.page.evaluate(CLOSE_AND_JUMP)
    window.page.keyboard.type("a2")
    window.page.keyboard.press("Enter")
    expect(window.dialog()).to_contain_text("clock offset")
    window.check_quiet()


def test_ended_session_asks_for_the_password_and_goes_on(
    system: RunningSystem, browser: Windows
) -> None:
    window = browser.open("mia")
    window.go("models", "Models")
    with system.client() as http:
        http.put("/api/auth/users/mia/password", json={"password": "a long enough password"})
    expect(window.page.get_by_text("Your session has ended.")).to_be_visible(timeout=30_000)
    window.sign_in("mia")
    expect(window.page.get_by_role("heading", level=1, name="Models")).to_be_visible()
    window.check_quiet(refusals=True)


@pytest.fixture(scope="module")
def models(system: RunningSystem) -> list[str]:
    """Return two models, trained from simulated events."""
    system.simulate(2000)
    training = {"dataset": "training_examples", "include_simulated": True}
    with system.client() as http:
        jobs = [
            http.post("/api/training/train", json={**training, "rounds": rounds})
            .raise_for_status()
            .json()["id"]
            for rounds in (5, 8)
        ]
        for job in jobs:
            until_document(http, f"/api/jobs/{job}", lambda found: found["state"] == "succeeded")
        return [
            http.get(f"/api/training/jobs/{job}").raise_for_status().json()["model_id"]
            for job in jobs
        ]


def test_training_by_keyboard_shows_its_loss_while_it_runs_and_is_cancelled(
    models: list[str], browser: Windows
) -> None:
    window = browser.open("mia")
    window.go("jobs", "Jobs")
    window.press(window.page.get_by_role("button", name="Train …"))
    form = window.dialog()
    window.enter(form.get_by_label("Rounds, at most"), "10000")
    window.enter(form.get_by_label("Stop after rounds"), "1001")
    window.press(form.get_by_label("use simulated rows too"), "Space")
    window.press(form.get_by_role("button", name="Train"))
    limited = form.get_by_label("Stop after rounds")
    expect(limited).to_be_focused()  # the browser says what is wrong
    window.page.keyboard.press("Control+a")
    window.page.keyboard.type("0")
    window.page.keyboard.press("Enter")
    job = window.page.get_by_role("dialog", name=re.compile("Job "))
    expect(job.get_by_text("Loss on the validation rows")).to_be_visible()
    expect(job.get_by_text("running")).to_be_visible()
    window.press(job.get_by_text("Figures as a table"))
    points = job.get_by_role("region", name="figures").locator("tbody tr")
    expect(points.nth(1)).to_contain_text(re.compile(r"0\.\d"))  # the curve grows
    window.press(job.get_by_role("button", name="Cancel"))
    expect(job.get_by_text("cancelled", exact=True)).to_be_visible()
    window.page.keyboard.press("Escape")
    expect(window.page.locator("tbody tr").first).to_contain_text("cancelled")
    window.check_quiet()


def test_estimate_of_an_export_follows_its_form(models: list[str], browser: Windows) -> None:
    window = browser.open("mia")
    window.go("jobs/datasets", "Jobs")
    row = window.page.locator("tbody tr").filter(has_text="What became of a bundle")
    row.get_by_role("button", name="Export …").click()
    form = window.dialog()
    expect(form.get_by_label("From slot")).to_be_visible()
    expect(form.get_by_label("From (local time)")).to_have_count(0)  # bundles have only slots
    form.get_by_label("From slot").fill("99999999999")
    form.get_by_role("button", name="Estimate").click()
    expect(form.get_by_role("status")).to_contain_text(re.compile("^0 rows"))
    form.get_by_label("From slot").fill("")
    expect(form.get_by_role("status")).to_have_count(0)
    form.get_by_label("Conditions, one a line").fill("nonsense >= 3")
    form.get_by_role("button", name="Estimate").click()
    expect(form.get_by_role("alert")).to_contain_text("nonsense")
    form.get_by_label("Conditions, one a line").fill("profit_lamports >= 0.001 SOL")
    form.get_by_role("button", name="Estimate").click()
    expect(form.get_by_role("status")).to_contain_text(re.compile("^[1-9].* rows"))
    form.get_by_label("Dataset").select_option("tick")
    expect(form.get_by_label("From (local time)")).to_be_visible()
    window.check_quiet(refusals=True)


def test_two_models_are_compared(models: list[str], browser: Windows) -> None:
    window = browser.open("mia")
    window.go("models", "Models")
    compare = window.page.get_by_role("button", name="Compare two")
    expect(compare).to_be_disabled()
    for model in models:
        window.page.get_by_label(f"Compare {model[:12]}").check()
    compare.click()
    table = window.dialog().get_by_role("group", name="Figures of both models")
    for model in models:
        expect(table).to_contain_text(model[:12])
    expect(table.locator("tr").filter(has_text="auc").first).to_contain_text(re.compile(r"0\.\d"))
    expect(table.locator("tr").filter(has_text="rounds").last).to_contain_text("8")
    window.check_quiet()


def test_model_is_deployed_by_two_persons_to_canary_and_rolled_back(
    models: list[str], browser: Windows
) -> None:
    window, second = browser.open("mia"), browser.open("olga")
    window.page.goto(f"{window.url}/#/models/{models[0]}")
    window.dialog().get_by_role("button", name="Deploy …").click()
    window.dialog().get_by_role("button", name="Deploy", exact=True).click()
    rollout = window.page.get_by_role("dialog", name="Deployment")
    expect(rollout.get_by_role("listitem").filter(has_text="shadow").first).to_have_attribute(
        "aria-current", "step"
    )
    expect(rollout.get_by_text("watching")).to_be_visible()

    rollout.get_by_role("button", name="Next stage …").click()
    form = window.dialog()
    form.get_by_label("Share of the agents, %").fill("30")
    expect(form.get_by_role("button", name="Deploy", exact=True)).to_be_disabled()
    form.get_by_label("This may raise risk").fill("arbitrage")
    form.get_by_role("button", name="Deploy", exact=True).click()
    expect(form.get_by_role("status")).to_contain_text("Nothing has changed yet")
    window.page.keyboard.press("Escape")

    second.go("models/rollout", "Models")
    approvals = second.page.get_by_role("region", name="Approvals")
    expect(approvals).to_contain_text(f"deployment: canary of {models[0][:12]}")
    approvals.get_by_role("button", name="Review …").click()
    second.dialog().get_by_label("This may raise risk").fill("arbitrage")
    second.dialog().get_by_role("button", name="Approve").click()
    expect(rollout.get_by_role("listitem").filter(has_text="canary").first).to_have_attribute(
        "aria-current", "step"
    )
    expect(rollout.get_by_text("watching")).to_be_visible()

    rollout.get_by_role("button", name="Roll back …").click()
    window.dialog().get_by_label("Reason").fill(MARKUP)
    window.dialog().get_by_role("button", name="Roll back", exact=True).click()
    expect(rollout.get_by_text("rolled back", exact=True)).to_be_visible()
    expect(rollout).to_contain_text(MARKUP)
    window.check_quiet()
    second.check_quiet()


def test_refused_policy_goes_back_to_its_form_and_a_version_is_rolled_back(
    system: RunningSystem, browser: Windows
) -> None:
    window = browser.open("olga")
    window.go("orders/policies", "Orders")
    window.page.get_by_role("button", name="New policy …").click()
    form = window.page.get_by_role("dialog", name="New policy")
    form.get_by_label("Name").fill("limits")
    form.get_by_label("Type").fill("risk")
    form.get_by_role("button", name="Add a rule").click()
    form.get_by_label("Field").fill("nonsense")
    form.get_by_label("Value", exact=True).fill("1000")
    form.get_by_role("button", name="Review the changes").click()
    review = window.page.get_by_role("dialog", name="Send policy limits?")
    review.get_by_role("button", name="Send").click()
    expect(review.get_by_role("alert")).to_contain_text("no plain field 'nonsense'")
    review.get_by_role("button", name="Back").click()
    expect(form.get_by_label("Name")).to_have_value("limits")
    for value in ["1000", "2000"]:
        if value == "2000":
            window.page.get_by_role("link", name="limits", exact=True).click()
            window.page.get_by_role("button", name="Change …").click()
            form = window.page.get_by_role("dialog", name="Policy limits").last
            form.get_by_role("button", name="Add a threshold").click()
            form.get_by_label("Threshold", exact=True).fill("min_expected_profit_lamports")
            form.get_by_label("Value of min_expected_profit").fill(value)
        else:
            form.get_by_label("Field").fill("tip_lamports")
        form.get_by_role("button", name="Review the changes").click()
        expect(review).to_contain_text(
            "tip_lamports >= 1000" if value == "1000" else "thresholds.min_expected_profit_lamports"
        )
        if value == "2000":
            expect(review).not_to_contain_text("tip_lamports")  # the rule is as before
        review.get_by_role("button", name="Send").click()
        expect(review.get_by_text("3 of 3 agents acknowledged")).to_be_visible()
        window.page.keyboard.press("Escape")
        window.page.keyboard.press("Escape")
    window.page.get_by_role("link", name="limits", exact=True).click()
    window.page.get_by_role("button", name="Roll back …").click()
    back = window.page.get_by_role("dialog", name="Roll back limits?")
    back.get_by_label("This may raise risk").fill("limits")
    back.get_by_role("button", name="Send").click()
    expect(back).to_contain_text("Nothing has changed yet")  # it takes a limit away
    second = browser.open("oskar")
    second.go("orders/policies", "Orders")
    proposal = second.page.get_by_role("listitem").filter(has_text="policy limits")
    proposal.get_by_role("button", name="Review …").click()
    second.dialog().get_by_label("This may raise risk").fill("all")
    second.dialog().get_by_role("button", name="Approve").click()
    newest = second.page.locator("tbody tr").filter(has_text="limits")
    expect(newest).not_to_contain_text("min_expected_profit_lamports")
    expect(newest).to_contain_text("3 acknowledged")
    second.check_quiet()
    window.check_quiet(refusals=True)


def test_earlier_events_are_read_on_request_and_from_a_time(
    system: RunningSystem, browser: Windows
) -> None:
    window, mark = browser.open("vera"), f"{time.time_ns()}"
    expect(window.page.get_by_text("over WebSocket")).to_be_visible()
    publish(system, "bundle", *(Bundle(bundle_id=f"{mark}-{n}", error=mark) for n in range(40)))
    expect(window.page.get_by_text(mark).nth(9)).to_be_visible()
    expect(window.page.locator(".counters")).to_contain_text("40 seen")
    for name in ["Opportunities", "Arbitrages", "Sandwiches", "Liquidations"]:
        window.page.get_by_role("button", name=name, exact=True).click()
    condition = window.page.get_by_label("Filter: a condition")
    condition.fill(f'error == "{mark}"')
    condition.press("Enter")
    expect(window.page.get_by_label("Remove the condition")).to_be_visible()
    expect(window.page.locator(".counters")).to_contain_text("0 shown")
    window.press(window.page.get_by_role("button", name="Earlier events"))
    expect(window.page.locator(".counters")).to_contain_text("40 shown")
    window.focus(window.page.get_by_role("grid"))
    window.page.keyboard.press("End")
    window.page.keyboard.press("Enter")
    expect(window.page.get_by_label("The chosen event")).to_contain_text(mark)
    window.page.keyboard.press("Escape")
    expect(window.page.get_by_label("The chosen event")).to_have_count(0)
    now_ms = window.page.evaluate("() => Date.now() - new Date().getTimezoneOffset() * 60_000")
    at = datetime.fromtimestamp(now_ms / 1000 - 600, UTC).strftime("%Y-%m-%dT%H:%M")
    window.page.get_by_label("Show events from a time on").fill(at)
    expect(window.page.locator(".counters")).to_contain_text("40 seen")
    window.check_quiet()


def test_forms_and_the_stop_are_used_by_keyboard_alone(
    system: RunningSystem, browser: Windows
) -> None:
    window = browser.open("ada")
    missed = {}
    for path, name in FORMS:
        window.go(path, PAGES[path])
        button = window.page.get_by_role("button", name=name).first
        window.press(button)
        expect(window.dialog()).to_be_visible()
        missed[name] = window.out_of_reach()
        window.page.keyboard.press("Escape")
        expect(button).to_be_focused()
    assert {name: each for name, each in missed.items() if each} == {}
    window.press(window.page.locator("#stop"), "Space")
    window.focus(window.dialog().get_by_role("button", name="Hold to set HALTED"))
    window.page.keyboard.down("Space")
    expect(window.dialog()).to_contain_text("3 of 3 agents acknowledged")
    window.page.keyboard.up("Space")
    window.check_quiet()


def test_stop_opens_by_touch_and_cells_name_their_columns_on_a_phone(browser: Windows) -> None:
    window = browser.open("olga", width=360, height=740, theme="dark", touch=True)
    window.go("fleet", "Fleet")
    agent = window.page.locator("tbody tr").filter(has_text="a1")
    lease = agent.locator("td[data-column=Lease]")
    assert "Lease" in lease.evaluate("(cell) => getComputedStyle(cell, '::before').content")
    window.page.locator("#stop").tap()
    expect(window.dialog()).to_contain_text("3 agents, all reachable")
    window.page.touchscreen.tap(180, 4)
    expect(window.page.locator("dialog[open]")).to_have_count(0)
    window.check_quiet()
