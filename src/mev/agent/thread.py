"""Work that blocks, in threads of its own: what hangs there holds up neither the event loop nor other work nor the end of the process."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")


async def in_thread(name: str, work: Callable[[], T]) -> T:
    """Do `work` in a new daemon thread and return what it returns; cancelled, it goes on unheard.

    A pool would have an end: a few calls that never return would keep all others waiting.
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
        except BaseException as error:  # noqa: BLE001 - whatever it is, it belongs to whoever waits
            set_outcome, outcome = done.set_exception, error  # type: ignore[assignment]
        with suppress(RuntimeError):  # the event loop has ended: nobody waits any more
            loop.call_soon_threadsafe(settle, set_outcome, outcome)

    threading.Thread(target=run, name=name, daemon=True).start()
    return await done
