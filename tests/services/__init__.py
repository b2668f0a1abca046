"""Real servers for the tests, started as child processes or skipped with a reason."""

import os
from typing import NoReturn

import pytest


def require(reason: str) -> NoReturn:
    """Skip the test for a missing requirement, or fail it where MEV_REQUIRE_ALL=1."""
    if os.environ.get("MEV_REQUIRE_ALL") == "1":
        pytest.fail(f"MEV_REQUIRE_ALL=1, but {reason}", pytrace=False)
    pytest.skip(reason, allow_module_level=True)
