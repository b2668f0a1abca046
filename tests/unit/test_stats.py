"""Queries of statistics: one of each user at a time."""

import asyncio
import threading
from typing import Any, cast

import httpx
import pytest
from fastapi import FastAPI

from mev.auth.dependencies import PRINCIPAL
from mev.auth.model import CredentialKind, Permission, Principal
from mev.core import asgi
from mev.stats.routes import router
from mev.stats.service import EventStats, Stats
from tests.services.waits import until_async

WINDOW = "from=2026-01-01T00:00:00Z&to=2026-01-01T01:00:00Z"


class SlowStats:
    """Statistics that are answered once `go` is set; `begun` counts the queries."""

    def __init__(self) -> None:
        self.begun = 0
        self.go = threading.Event()

    def events(self, *_: Any) -> EventStats:
        self.begun += 1
        self.go.wait(10)
        return EventStats(from_ns=0, to_ns=1, step_s=1, times_ns=[], series=[])


def client(app: FastAPI, user: str, key: str) -> httpx.AsyncClient:
    """Return a client of a key of `user`."""
    who = Principal(
        id=f"key:{key}",
        name=key,
        kind=CredentialKind.KEY,
        permissions=frozenset({Permission.EVENTS_READ}),
        user=user,
    )

    async def known(scope: asgi.Scope, receive: asgi.Receive, send: asgi.Send) -> None:
        scope[PRINCIPAL] = who
        await app(scope, receive, send)

    return httpx.AsyncClient(transport=httpx.ASGITransport(known), base_url="http://stats")


@pytest.mark.parametrize("keys", [("k1",) * 3, ("k1", "k2", "k3")])
async def test_queries_of_one_user_do_not_delay_those_of_others(keys: tuple[str, ...]) -> None:
    stats, app = SlowStats(), FastAPI()
    app.include_router(router(cast("Stats", stats)))
    path = f"/api/stats/events?{WINDOW}"
    alice, bob = [client(app, "alice", key) for key in keys], client(app, "bob", "k9")
    running = [asyncio.create_task(one.get(path)) for one in alice]
    await until_async(lambda: stats.begun > 0)
    await asyncio.sleep(0.1)
    assert stats.begun == 1, "the second and third query of alice wait"
    running.append(asyncio.create_task(bob.get(path)))
    await until_async(lambda: stats.begun == 2)
    stats.go.set()
    assert [one.status_code for one in await asyncio.gather(*running)] == [200] * 4
    assert stats.begun == 4
    for one in (*alice, bob):
        await one.aclose()
