"""What is wrong with a filter."""

from mev.core.errors import InvalidInputError

_ECHO = 60


class BadFilterError(InvalidInputError):
    """The filter is wrong."""

    code = "bad_filter"


def shorten(text: str) -> str:
    """Return `text`, or its beginning."""
    return text if len(text) <= _ECHO else f"{text[:_ECHO]}..."


def echo(text: str) -> str:
    """Return `text` in quotes, printable and not long."""
    return repr(shorten(text))
