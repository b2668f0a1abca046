"""Real servers for the tests: each is started as a child process, or its tests are skipped with a reason."""

import os
from typing import NoReturn

import pytest


def require(reason: str) -> NoReturn:
    """Skip the test that lacks something, or fail it where MEV_REQUIRE_ALL=1 says that everything must be present."""
    if os.environ.get("MEV_REQUIRE_ALL") == "1":
        pytest.fail(f"MEV_REQUIRE_ALL=1, but {reason}", pytrace=False)
    pytest.skip(reason)
