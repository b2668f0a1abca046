"""Tests of metrics and readiness that are gathered from several processes."""

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from mev.host.gather import merge_metrics, merge_readiness
from mev.host.health import Dependency, ProcessStatus, Readiness

WELL = ProcessStatus(pid=1, restarts=0, problem=None)


def metrics(count: int) -> bytes:
    registry = CollectorRegistry()
    Counter("requests_total", "Requests.", ["status"], registry=registry).labels("200").inc(count)
    Histogram("seconds", "Time.", registry=registry, buckets=[1]).observe(count)
    return generate_latest(registry)


def readiness(*, ok: bool = True, required: bool = True) -> Readiness:
    kafka = Dependency(ok=ok, required=required, embedded=False, latency_ms=1, error=None)
    return Readiness(
        ready=ok or not required,
        degraded=[] if ok or required else ["kafka"],
        dependencies={"kafka": kafka},
        confinement="",
    )


def test_each_sample_of_a_process_gets_its_label_and_each_family_is_there_once() -> None:
    merged = merge_metrics({"api-0": metrics(2), "api-1": metrics(3)}).decode()
    found = {
        (sample.name, sample.labels["worker"], sample.labels.get("le")): sample.value
        for family in text_string_to_metric_families(merged)
        for sample in family.samples
    }
    assert found["requests_total", "api-0", None] == 2
    assert found["requests_total", "api-1", None] == 3
    assert found["seconds_bucket", "api-1", "1.0"] == 0
    assert found["seconds_sum", "api-0", None] == 2
    assert merged.count("# TYPE requests_total counter") == 1
    assert merged.count("# TYPE seconds histogram") == 1


def test_dependency_that_one_process_lacks_makes_the_system_not_ready() -> None:
    found = {"api-0": readiness(), "control": readiness(ok=False)}
    merged = merge_readiness(found, dict.fromkeys(found, WELL), is_draining=False)
    assert not merged.ready
    assert not merged.dependencies["kafka"].ok


def test_silent_process_degrades_the_system() -> None:
    processes = {"api-0": WELL, "control": WELL}
    merged = merge_readiness({"api-0": readiness()}, processes, is_draining=False)
    assert merged.ready
    assert merged.degraded == ["control"]
    assert merged.processes["control"].problem == "it does not answer"
    assert not merge_readiness({}, processes, is_draining=False).ready


def test_system_that_drains_is_not_ready() -> None:
    assert not merge_readiness({"a": readiness()}, {"a": WELL}, is_draining=True).ready
