"""Start and end of a server process."""

import os
import sys
import threading

import prometheus_client

from mev.core import log
from mev.settings import Settings

LEFT_OUT = prometheus_client.Counter(
    "mev_log_left_out_total",
    "Log records left out because one place in the code had too many.",
    ["logger"],
)
EXIT_GRACE_S = 10.0


def configure_process(settings: Settings, *, name: str = "") -> None:
    """Set up logging and metrics; `name` tells the process's log records from others'."""
    repeats = log.RepeatFilter(
        settings.log_repeats_per_minute, on_left_out=lambda logger: LEFT_OUT.labels(logger).inc()
    )
    log.configure(settings.log_level, repeats, process=name)
    prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]


def end_after_shutdown(settings: Settings) -> None:
    """End the process if the graceful shutdown that begins now takes too long.

    Acknowledged data is safe; the next start cleans up.
    """
    seconds = settings.shutdown_timeout_s + EXIT_GRACE_S

    def end() -> None:
        sys.stderr.write(f"mev: not stopped within {seconds:g} s; ending now\n")
        os._exit(1)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
