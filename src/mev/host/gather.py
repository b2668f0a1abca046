"""Metrics and readiness of several processes as those of one system."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from mev.host.health import Dependency, ProcessStatus, Readiness

LABEL = "worker"


class _Gathered(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def merge_families(texts: Mapping[str, bytes]) -> list[Metric]:
    """Return all processes' metrics; each sample gets the label `worker`.

    `texts` are metrics in the text format of Prometheus, by the name of the process.
    """
    families: dict[str, Metric] = {}
    for name, text in texts.items():
        for family in text_string_to_metric_families(text.decode()):
            gathered = families.setdefault(
                family.name, Metric(family.name, family.documentation, family.type)
            )
            gathered.samples += [
                sample._replace(labels={**sample.labels, LABEL: name}) for sample in family.samples
            ]
    return list(families.values())


def merge_metrics(texts: Mapping[str, bytes]) -> bytes:
    """Return the text of all processes' metrics; see :func:`merge_families`."""
    registry = CollectorRegistry()
    registry.register(_Gathered(merge_families(texts)))
    return generate_latest(registry)


def merge_readiness(
    found: Mapping[str, Readiness], processes: Mapping[str, ProcessStatus], *, is_draining: bool
) -> Readiness:
    """Return the readiness of a system of several processes.

    A dependency is ready if it is in every process. A process that does not answer degrades the
    system: requests wait for its successor. The system is not ready if no process answers.
    """
    dependencies: dict[str, Dependency] = {}
    for readiness in found.values():
        for name, dependency in readiness.dependencies.items():
            known = dependencies.get(name)
            if known is None or _badness(dependency) > _badness(known):
                dependencies[name] = dependency
    degraded = {name for readiness in found.values() for name in readiness.degraded}
    checked = {
        name: replace(status, problem=status.problem or _silence(name, found))
        for name, status in processes.items()
    }
    return Readiness(
        ready=bool(found)
        and not is_draining
        and all(readiness.ready for readiness in found.values()),
        degraded=sorted(degraded | {name for name, status in checked.items() if status.problem}),
        dependencies=dependencies,
        confinement=next((each.confinement for each in found.values() if each.confinement), ""),
        processes=checked,
    )


def _badness(dependency: Dependency) -> tuple[bool, float]:
    return not dependency.ok, dependency.latency_ms


def _silence(name: str, found: Mapping[str, Readiness]) -> str | None:
    return None if name in found else "it does not answer"
