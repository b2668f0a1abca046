"""Measure the dashboard under a steady stream of events.

``PYTHONPATH=. .venv/bin/python tools/dashboard_load.py 600`` publishes 5,000 bundles a second for
600 s, and prints what the page counted, the times between its frames and the size of its heap.
"""

import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import CDPSession, Page

from mev.wire.pb.events_pb2 import Bundle
from tests.services.dashboard import add_users, publish, windows
from tests.services.system import RunningSystem

_EVENTS_PER_S = 5000
_BATCH = 1000
_HEAP_EVERY_S = 15
_WATCH_FRAMES = """() => {
  window.frames_ms = [];
  let last = performance.now();
  const frame = (now) => {
    frames_ms.push(now - last);
    last = now;
    requestAnimationFrame(frame);
  };
  requestAnimationFrame(frame);
}"""
_PAINT = "() => performance.getEntriesByName('first-contentful-paint')[0].startTime"


def main(duration_s: float) -> None:
    """Run a system and a page for `duration_s`."""
    with tempfile.TemporaryDirectory() as folder:
        system = RunningSystem(Path(folder) / "data")
        system.start()
        try:
            add_users(system, {"vera": "viewer"})
            with windows(system) as browser:
                page = browser.open("vera").page
                page.reload()
                page.get_by_text("over WebSocket").wait_for()
                _print(f"first contentful paint {page.evaluate(_PAINT):.0f} ms")
                _measure(system, page, duration_s)
        finally:
            system.stop()


def _measure(system: RunningSystem, page: Page, duration_s: float) -> None:
    page.evaluate(_WATCH_FRAMES)
    session = page.context.new_cdp_session(page)
    session.send("HeapProfiler.enable")
    started_s, published, heaps = time.monotonic(), 0, [_heap_mb(session)]
    while (passed_s := time.monotonic() - started_s) < duration_s:
        numbers = range(published, published + _BATCH)
        publish(system, "bundle", *(Bundle(bundle_id=f"{number}") for number in numbers))
        published += _BATCH
        if passed_s > len(heaps) * _HEAP_EVERY_S:
            heaps.append(_heap_mb(session))
        time.sleep(max(0, started_s + published / _EVENTS_PER_S - time.monotonic()))
    rate = published / (time.monotonic() - started_s)
    page.wait_for_timeout(5000)
    frames_ms = sorted(page.evaluate("() => frames_ms"))
    _print(f"published {published}, {rate:.0f} a second")
    _print(f"page: {page.locator('.counters').inner_text()!r}")
    _print(f"time between frames, p95: {frames_ms[int(len(frames_ms) * 0.95)]:.1f} ms")
    _print(f"heap every {_HEAP_EVERY_S} s: {', '.join(f'{each:.1f}' for each in heaps)} MB")


def _heap_mb(session: CDPSession) -> float:
    session.send("HeapProfiler.collectGarbage")
    used: int = session.send("Runtime.getHeapUsage")["usedSize"]
    return used / 1e6


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")


if __name__ == "__main__":
    main(float(sys.argv[1]))
