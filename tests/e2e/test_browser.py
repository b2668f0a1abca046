"""Tests of the TypeScript client in a real browser: both transports, fallback, and a restart."""

import socket
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from confluent_kafka import Producer

from mev.sink.block import join
from mev.wire.pb.events_pb2 import Opportunity
from mev.wire.registry import BY_TOPIC
from tests.integration.brokers import real, renew
from tests.services.browser import Browser, chromium, pages
from tests.services.kafka import RealKafka
from tests.services.service import free_port
from tests.services.system import RunningSystem

TOPIC = "mev.opportunity.v1"
FEW, MANY = 2_000, 100_000


def opportunity(number: int) -> Opportunity:
    return Opportunity(
        id=f"event-{number}", slot=number, kind="arbitrage", expected_profit_lamports=number
    )


def publish(system: RunningSystem, first: int, last: int) -> None:
    """Publish events over HTTP."""
    with system.client() as client:
        for start in range(first, last, 1000):
            body = join(
                [opportunity(n).SerializeToString() for n in range(start, min(start + 1000, last))]
            )
            client.post(
                "/api/events/opportunity",
                content=body,
                headers={"Content-Type": "application/x-protobuf"},
            ).raise_for_status()


def produce(kafka: RealKafka, first: int, last: int) -> None:
    """Publish events behind the system's back, so that it need not run."""
    producer = Producer(
        {**real(kafka).config(), "linger.ms": 5, "queue.buffering.max.messages": MANY + 1}
    )
    for number in range(first, last):
        producer.produce(
            TOPIC, key=f"event-{number}".encode(), value=opportunity(number).SerializeToString()
        )
    assert producer.flush(60) == 0


@pytest.fixture
def origin() -> Iterator[str]:
    with pages() as origin:
        yield origin


@contextmanager
def running(folder: Path, origin: str, **settings: str) -> Iterator[RunningSystem]:
    """Run a system that pages of `origin` may use, on ports that it keeps through a restart."""
    environment = {
        "CORS_ALLOWED_ORIGINS": origin,
        "WS_ALLOWED_ORIGINS": origin,
        "API_PORT": str(free_port()),
        "WT_PORT": str(free_port()),
    }
    system = RunningSystem(folder / "data", **environment, **settings)
    system.start()
    try:
        yield system
    finally:
        system.stop()


def options(system: RunningSystem, transport: str, **more: object) -> dict[str, object]:
    backoff = {"baseMs": 100, "maxMs": 500}
    return {
        "origin": system.url,
        "apiKey": system.key,
        "transport": transport,
        "pingMs": 1000,
        "backoff": backoff,
        **more,
    }


def begin_with_a_worker(
    browser: Browser, stream: Mapping[str, object], terms: Mapping[str, object]
) -> None:
    browser.begin(stream, terms)
    browser.wait_for_worker()


@pytest.mark.parametrize(
    "transport", [pytest.param("websocket", marks=pytest.mark.slow), "webtransport"]
)
def test_events_arrive_once_and_in_order(tmp_path: Path, origin: str, transport: str) -> None:
    terms = {
        "topics": ["opportunity"],
        "filter": ["expected_profit_lamports >= 500"],
        "onSlow": "lossless",
    }
    with running(tmp_path, origin) as system, chromium(origin) as browser:
        begin_with_a_worker(browser, options(system, transport), terms)
        publish(system, 0, FEW)
        seen = browser.wait(f"seen.events >= {FEW - 500}", 30)
        browser.end()
    assert (seen.events, seen.repeats, seen.disorder, seen.gaps) == (FEW - 500, 0, 0, [])
    assert seen.transports == [transport]


@pytest.mark.slow
def test_of_datagrams_every_event_arrives_or_is_reported(tmp_path: Path, origin: str) -> None:
    with running(tmp_path, origin) as system, chromium(origin) as browser:
        begin_with_a_worker(
            browser,
            options(system, "webtransport"),
            {"topics": ["opportunity"], "delivery": "datagram"},
        )
        publish(system, 0, FEW)
        total = "seen.events + seen.gaps.reduce((sum, gap) => sum + gap.count, 0)"
        seen = browser.wait(f"{total} >= {FEW}", 30)
        browser.end()
    assert seen.events > 0
    assert (seen.events + seen.lost, seen.repeats) == (FEW, 0)


@pytest.mark.slow
def test_where_udp_is_blocked_it_goes_on_over_a_websocket(tmp_path: Path, origin: str) -> None:
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as hole:
        hole.bind(
            ("127.0.0.1", 0)
        )  # takes packets, and answers none: as a firewall that drops them
        with running(tmp_path, origin) as system, chromium(origin) as browser:
            browser.misdirect(hole.getsockname()[1])
            browser.begin(
                options(system, "auto", webTransportTimeoutMs=1500),
                {"topics": ["opportunity"], "delivery": "datagram"},
            )
            assert hole.recv(65536, socket.MSG_DONTWAIT), "the browser did not try"
            publish(system, 0, FEW)
            seen = browser.wait(f"seen.events >= {FEW}", 30)
            browser.end()
    assert (seen.events, seen.repeats, seen.disorder, seen.gaps, seen.transports) == (
        FEW,
        0,
        0,
        [],
        ["websocket"],
    )
    assert [error for error in seen.errors if error.startswith("fallback")]


@pytest.mark.slow
def test_where_udp_is_refused_it_goes_on_over_a_websocket(tmp_path: Path, origin: str) -> None:
    with running(tmp_path, origin) as system, chromium(origin) as browser:
        browser.misdirect(free_port())  # nobody listens there: the kernel says so
        browser.begin(
            options(system, "auto", webTransportTimeoutMs=1500), {"topics": ["opportunity"]}
        )
        seen = browser.seen()
        browser.end()
    assert seen.transports == ["websocket"]


@pytest.mark.slow
@pytest.mark.parametrize("transport", ["websocket", "webtransport"])
@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_restart_costs_no_event_and_repeats_none(
    real_kafka: RealKafka, tmp_path: Path, origin: str, transport: str, end: str
) -> None:
    renew(real(real_kafka), "mev-sink", list(BY_TOPIC))
    terms = {"topics": ["opportunity"], "onSlow": "lossless"}
    with (
        running(tmp_path, origin, KAFKA_BROKERS=real_kafka.brokers) as system,
        chromium(origin) as browser,
    ):
        begin_with_a_worker(browser, options(system, transport), terms)
        produce(real_kafka, 0, MANY // 2)
        browser.wait("seen.events > 0", 30)
        system.stop() if end == "stop" else system.kill()
        produce(real_kafka, MANY // 2, MANY * 3 // 4)
        system.start()
        produce(real_kafka, MANY * 3 // 4, MANY)
        seen = browser.wait(f"seen.events >= {MANY} && seen.transports.length >= 2", 90)
        browser.end()
    assert (seen.events, seen.repeats, seen.disorder, seen.gaps) == (MANY, 0, 0, [])
    assert seen.transports == [transport, transport]
