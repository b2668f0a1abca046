"""Logging: one line a record on standard error, with its action. Whatever text gets into a message, it cannot look like another record."""

import logging
import sys
import textwrap
from typing import Any

from mev.core.text import shown

# What these say below that level, we say ourselves, once and with the remedy.
_LIBRARIES = {
    "uvicorn.error": logging.WARNING,
    "httpx": logging.WARNING,
    "clickhouse_connect": logging.CRITICAL,
    "urllib3": logging.ERROR,
}


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        record.action = getattr(record, "action", record.name)
        return super().format(record)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name is logging's
        record.message = shown(record.message).replace("\n", "\\n")
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:  # noqa: N802
        return textwrap.indent(shown(super().formatException(ei)), "  ", lambda _: True)


def configure(level: str) -> None:
    """Send every record of `level` and above to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter("%(asctime)s %(levelname)s %(action)s: %(message)s"))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for name, least in _LIBRARIES.items():
        logging.getLogger(name).setLevel(max(least, logging.getLevelName(level)))
