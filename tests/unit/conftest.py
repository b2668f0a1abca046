"""Fixtures of the unit tests."""

from collections.abc import Iterator

import pytest

from mev.core import native
from tests.services import require


@pytest.fixture(scope="module", params=["native", "python"])
def native_or_python(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run the module's tests with the native module, then with the Python code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEV_NATIVE", str(int(request.param == "native")))
        if request.param == "native" and not native.is_used():
            require(native.describe())
        yield
