"""Types of query parameters."""

import re
from typing import Annotated

from pydantic import BeforeValidator

_INTEGER = re.compile(r"-?[0-9]+")


def _ascii_digits(value: object) -> object:
    """Refuse text that is not plain digits: pydantic also reads ``1_0``, ``+5`` and ``5.0``."""
    if isinstance(value, str) and not _INTEGER.fullmatch(value):
        raise ValueError("only the digits 0 to 9 are allowed")
    return value


QueryInt = Annotated[int, BeforeValidator(_ascii_digits)]
"""An integer in a query or path."""
