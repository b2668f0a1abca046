"""Tests of the readiness of dependencies in /metrics."""

from prometheus_client import REGISTRY

from mev.core.errors import UnavailableError
from mev.host.health import Health


async def test_metric_shows_which_dependency_answers() -> None:
    async def answer() -> None:
        """Answer at once."""

    async def refuse() -> None:
        raise UnavailableError("it is down")

    checks = {"well": answer, "down": refuse}
    await Health(checks, embedded=(), optional=("down",), timeout_s=1).readiness()

    def value(dependency: str, required: str) -> float | None:
        labels = {"dependency": dependency, "required": required}
        return REGISTRY.get_sample_value("mev_dependency_up", labels)

    assert (value("well", "true"), value("down", "false")) == (1, 0)
