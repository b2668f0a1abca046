"""Limits of requests and responses of control, so that none delays the kill switch.

Bodies are bounded before they are parsed. Long responses are built in steps of a few milliseconds,
and one at a time per principal.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from operator import itemgetter
from typing import Annotated, Any, TypeVar

import orjson
from fastapi import Query, Request, Response
from fastapi.routing import APIRoute

from mev.core.coding import BodyTooLargeError
from mev.core.paging import page_of, rows_after
from mev.core.query import QueryInt
from mev.core.tasks import Turns

Json = dict[str, Any]
Limit = Annotated[QueryInt, Query(ge=1, le=1000)]
"""Rows of a page."""
MOST_BYTES = 64 << 10
"""Largest body of a route without a limit of its own."""
T = TypeVar("T")
_SLICE_S = 0.003


class Pages:
    """Builder of list pages, one at a time per principal.

    Concurrent requests of one principal wait for each other; they do not delay other principals.
    """

    def __init__(self) -> None:
        self._turns = Turns()

    async def page(
        self,
        reader: str,
        rows: Sequence[tuple[str, T]],
        view: Callable[[T], Json],
        limit: int,
        cursor: str | None,
    ) -> Response:
        """Return one page of at most `limit` rows, starting after the row named `cursor`.

        `view` is called for the rows of the page only.

        :raises InvalidCursorError: when no row is named `cursor`.
        """
        return await self.first(reader, rows_after(rows, cursor, itemgetter(0)), view, limit)

    async def first(
        self, reader: str, rows: Sequence[tuple[str, T]], view: Callable[[T], Json], limit: int
    ) -> Response:
        """Return a page of the first `limit` rows; if there are more, it has a next cursor."""
        page, following = page_of(rows, limit, itemgetter(0))
        async with self._turns.turn(reader):
            items = await _list([row for _, row in page], view)
        tail = b',"next_cursor":' + orjson.dumps(following) + b"}"
        return _response(b'{"items":' + items + tail)

    async def with_rows(
        self,
        reader: str,
        head: Callable[[], Json],
        name: str,
        rows: Sequence[T],
        view: Callable[[T], Json],
    ) -> Response:
        """Answer `reader` with one view that has all `rows` in its last member `name`."""
        async with self._turns.turn(reader):
            start = orjson.dumps(head()).removesuffix(b"}")
            items = await _list(rows, view)
        return _response(start + b"," + orjson.dumps(name) + b":" + items + b"}")

    async def one(self, reader: str, view: Callable[[], Json]) -> Response:
        """Answer `reader` with one view that may be long."""
        async with self._turns.turn(reader):
            await asyncio.sleep(0)
            return answer(view())


def bounded(limit_bytes: int) -> type[APIRoute]:
    """Return a route class that refuses a body of more than `limit_bytes` before parsing it."""

    class BoundedRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def bounded(request: Request) -> Response:
                if len(await request.body()) > limit_bytes:
                    raise BodyTooLargeError(
                        f"the body has more than {limit_bytes} bytes, the limit of this path"
                    )
                return await handle(request)

            return bounded

    return BoundedRoute


async def _list(rows: Sequence[T], view: Callable[[T], Json]) -> bytes:
    """Return the views of `rows` as a JSON array, made in slices."""
    parts, until = [], 0.0
    for row in rows:
        if time.perf_counter() >= until:
            await asyncio.sleep(0)
            until = time.perf_counter() + _SLICE_S
        parts.append(orjson.dumps(view(row)))
    return b"[" + b",".join(parts) + b"]"


def answer(content: Json, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return a JSON response with `content`.

    With many agents, FastAPI's own serialisation takes ten times as long.
    """
    return _response(orjson.dumps(content), status, headers)


def _response(body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(body, status, headers, "application/json")
