"""The end of tasks, locks by name, the hand-over of items from threads, and blocking work."""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any, Generic, TypeVar
from weakref import WeakValueDictionary

LOG = logging.getLogger(__name__)
T = TypeVar("T")


async def cancel(*tasks: asyncio.Task[Any]) -> None:
    """Cancel `tasks` and return once all have ended; their results and exceptions are dropped."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def cancel_and_log(*tasks: asyncio.Task[Any]) -> None:
    """Cancel `tasks` and return once all have ended; log the exceptions of those that failed."""
    await cancel(*tasks)
    for task in tasks:
        if not task.cancelled() and (error := task.exception()) is not None:
            LOG.error(
                "the background task %s failed",
                task.get_name(),
                exc_info=error,
                extra={"action": "background_task_failed"},
            )


@asynccontextmanager
async def background(*coroutines: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run `coroutines` as tasks; cancel them when the context ends, and wait for them.

    A task that failed is logged then; it does not keep the others from being stopped.
    """
    tasks = [
        asyncio.create_task(coroutine, name=getattr(coroutine, "__qualname__", None))
        for coroutine in coroutines
    ]
    try:
        yield
    finally:
        await cancel_and_log(*tasks)


class Turns:
    """Locks by name: those who hold one name wait for each other, in order; others do not."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def turn(self, name: str) -> AsyncIterator[None]:
        """Hold the lock of `name`."""
        lock = self._locks.setdefault(name, asyncio.Lock())
        async with lock:
            yield


class Handover(Generic[T]):
    """Passes items from threads to `receive`, which runs in the event loop that creates this.

    The receiver calls :meth:`release` once for each item. While `limit` items are not released,
    `put` blocks: a busy loop slows down its threads instead of using memory.
    """

    def __init__(self, receive: Callable[[T], None], limit: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._receive = receive
        self._room = threading.Semaphore(limit)
        self._closed = False

    def put(self, item: T) -> None:
        """Pass `item` on, from a thread; it is dropped if the hand-over is closed meanwhile."""
        while not self._room.acquire(timeout=0.1):
            if self._closed:
                return
        self._loop.call_soon_threadsafe(self._receive, item)

    def release(self) -> None:
        """Make room for another item."""
        self._room.release()

    def close(self) -> None:
        """Release blocked threads; their items are dropped."""
        self._closed = True


async def in_thread(name: str, work: Callable[[], T]) -> T:
    """Run `work` in a new daemon thread and return its result; it continues when cancelled.

    A thread pool would be exhausted by a few calls that never return.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(set_outcome: Callable[[Any], None], outcome: object) -> None:
        if not done.done():
            set_outcome(outcome)

    def run() -> None:
        set_outcome: Callable[[Any], None]
        try:
            set_outcome, outcome = done.set_result, work()
        except BaseException as error:  # noqa: BLE001 - passed on to the waiting task
            set_outcome, outcome = done.set_exception, error  # type: ignore[assignment]
        with suppress(RuntimeError):  # the event loop has ended
            loop.call_soon_threadsafe(settle, set_outcome, outcome)

    threading.Thread(target=run, name=name, daemon=True).start()
    return await done
