"""Tests of the dashboard while the server is restarted."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect

from mev.wire.pb.events_pb2 import Bundle
from tests.services.dashboard import (
    Windows,
    publish,
    resume,
    running_fleet,
    wait_for_levels,
    windows,
)
from tests.services.system import RunningSystem

pytestmark = pytest.mark.slow


@pytest.fixture
def system(tmp_path: Path) -> Iterator[RunningSystem]:
    with running_fleet(tmp_path) as running:
        yield running


@pytest.fixture
def browser(system: RunningSystem) -> Iterator[Windows]:
    with windows(system) as found:
        yield found


def test_restart_greys_the_page_and_it_recovers(system: RunningSystem, browser: Windows) -> None:
    window = browser.open("olga")
    window.go("fleet", "Fleet")
    resume_button = window.page.get_by_role("button", name="Resume all …")
    expect(resume_button).to_be_enabled()
    system.stop()
    expect(window.page.get_by_role("alert")).to_contain_text("Connection lost", timeout=15_000)
    expect(resume_button).to_be_disabled()
    expect(window.page.locator("#stop")).to_be_enabled()
    expect(window.page.locator(".panel").first).to_have_css("opacity", "0.6")
    system.start()
    expect(window.page.get_by_role("alert")).to_have_count(0, timeout=60_000)
    expect(resume_button).to_be_enabled()
    window.go("live", "Live")
    publish(system, "bundle", Bundle(bundle_id=f"{time.time_ns()}", error="after the restart"))
    expect(window.page.get_by_text("after the restart").first).to_be_visible(timeout=30_000)
    window.check_quiet(refusals=True)


def test_stop_that_is_sent_during_a_restart_arrives(
    system: RunningSystem, browser: Windows
) -> None:
    resume(browser, "all")
    window = browser.open("olga")
    system.kill()
    window.hold(window.page.locator("#stop"))
    expect(window.dialog()).to_contain_text("Sending", timeout=15_000)
    system.start()
    expect(window.dialog().get_by_text("3 of 3 agents acknowledged")).to_be_visible(timeout=90_000)
    wait_for_levels(system, "HALTED")
    window.check_quiet(refusals=True)
