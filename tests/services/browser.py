"""A real Chromium on a page that has the TypeScript client, as `make web` built it."""

import contextlib
import shutil
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, Route, sync_playwright

from tests.services import require

CLIENT = Path(__file__).parents[2] / "web" / "client" / "dist"
_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# Each event counts once, or as a repeat, or as out of order in its partition.
_PAGE = b"""<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,">
<script type="module">
import { Stream } from "./standalone.js";
window.seen = {
  events: 0, repeats: 0, disorder: 0, ids: [], gaps: [], errors: [], transports: [], starts: [],
};
window.begin = async (options, terms) => {
  const ids = new Set();
  const last = new Map();
  const stream = new Stream(options);
  stream.on("state", (state) => {
    if (state.name === "open") seen.transports.push(state.transport);
  });
  stream.on("gap", (gap) => seen.gaps.push({ reason: gap.reason, count: gap.count }));
  stream.on("error", (error) => seen.errors.push(error.message));
  const subscription = stream.subscribe(terms, (events) => {
    for (const { type, partition, offset, message } of events) {
      if (ids.has(message.id)) seen.repeats += 1;
      else seen.events += 1;
      ids.add(message.id);
      const place = `${type}/${partition}`;
      if (offset <= (last.get(place) ?? -1n)) seen.disorder += 1;
      last.set(place, offset);
    }
  });
  window.stream = stream;
  return (await subscription.ready).start;
};
</script>"""


@dataclass(frozen=True)
class Seen:
    """Everything received in the page so far."""

    events: int
    repeats: int
    disorder: int
    gaps: list[dict[str, Any]]
    errors: list[str]
    transports: list[str]

    @property
    def lost(self) -> int:
        """Return the number of events reported missing by the client."""
        return sum(gap["count"] for gap in self.gaps)


class Browser:
    """A page at `origin`."""

    def __init__(self, page: Page, origin: str) -> None:
        self.origin = origin
        self._page = page

    def begin(self, options: Mapping[str, object], terms: Mapping[str, object]) -> None:
        """Make a stream with one subscription, and wait until the server confirmed it."""
        self._page.evaluate("([options, terms]) => begin(options, terms)", [options, terms])

    def wait(self, condition: str, timeout_s: float) -> Seen:
        """Wait until a JavaScript expression of `seen` holds."""
        try:
            self._page.wait_for_function(f"() => {condition}", timeout=timeout_s * 1000, polling=50)
        except Exception as error:
            raise AssertionError(f"not {condition}: {self.seen()}") from error
        return self.seen()

    def seen(self) -> Seen:
        """Tell what arrived."""
        seen = self._page.evaluate("() => seen")
        return Seen(**{name: seen[name] for name in Seen.__annotations__})

    def wait_for_worker(self) -> None:
        """Wait until the client has the worker that decodes."""
        if not self._page.workers:
            self._page.wait_for_event("worker", timeout=10_000)

    def end(self) -> None:
        """Close the stream."""
        self._page.evaluate("() => stream.close()")

    def misdirect(self, port: int) -> None:
        """Have the server's answer to where WebTransport is name another port."""

        def answer(route: Route) -> None:
            found = route.fetch().json()
            assert found["enabled"], found
            host = found["url"].split("/")[2].rsplit(":", 1)[0]
            headers = {"Access-Control-Allow-Origin": self.origin}
            route.fulfill(
                headers=headers, json={**found, "url": f"https://{host}:{port}/api/realtime/wt"}
            )

        self._page.route("**/api/realtime/webtransport", answer)


class _Files(SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path != "/":
            super().do_GET()
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(_PAGE)))
        self.end_headers()
        self.wfile.write(_PAGE)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def pages() -> Iterator[str]:
    """Serve the page and the client; yield the origin."""
    if not (CLIENT / "standalone.js").exists():
        require("the TypeScript client is not built; run `make web`")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Files, directory=str(CLIENT)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextlib.contextmanager
def chromium(origin: str) -> Iterator[Browser]:
    """Open the page of `origin` in a browser of its own."""
    executable = shutil.which("chromium")
    if executable is None:
        require("there is no chromium; install the package of that name")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=_FLAGS)
        try:
            page = browser.new_page()
            page.goto(origin)
            page.wait_for_function("() => window.begin")
            yield Browser(page, origin)
        finally:
            browser.close()
