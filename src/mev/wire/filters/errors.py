"""The error for invalid filters, and helpers that quote input in its message."""

from mev.core.errors import InvalidInputError

_ECHO = 60


class BadFilterError(InvalidInputError):
    """The filter is invalid."""

    code = "bad_filter"


def shorten(text: str) -> str:
    """Return `text`, truncated if it is long."""
    return text if len(text) <= _ECHO else f"{text[:_ECHO]}..."


def echo(text: str) -> str:
    """Return `text` in quotes, printable and truncated."""
    return repr(shorten(text))
