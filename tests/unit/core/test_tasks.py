"""Tests of the end of tasks and of the hand-over from threads to the event loop."""

import asyncio
import logging
import threading

import pytest

from mev.core.tasks import Handover, background, cancel


async def fail() -> None:
    raise ValueError("broken")


async def failed_task() -> asyncio.Task[None]:
    task = asyncio.create_task(fail())
    await asyncio.wait([task])
    return task


async def test_cancel_returns_once_all_tasks_have_ended() -> None:
    ended = list[str]()

    async def slow(name: str) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append(name)

    tasks = [asyncio.create_task(slow(name)) for name in ("a", "b")]
    await asyncio.sleep(0)
    await cancel(*tasks, await failed_task())
    assert sorted(ended) == ["a", "b"]
    assert all(task.cancelled() for task in tasks)


async def test_cancelled_caller_of_cancel_is_cancelled() -> None:
    ending, may_end = asyncio.Event(), asyncio.Event()

    async def slow() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ending.set()
            await may_end.wait()

    task = asyncio.create_task(slow())
    await asyncio.sleep(0)
    caller = asyncio.create_task(cancel(task))
    await ending.wait()
    caller.cancel()
    await asyncio.wait([caller])
    assert caller.cancelled()


async def test_background_tasks_are_cancelled_when_the_context_ends() -> None:
    ended: list[str] = []

    async def work(name: str) -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0)
            ended.append(name)

    async with background(work("first"), work("second")):
        await asyncio.sleep(0)
        assert not ended
    assert sorted(ended) == ["first", "second"]


async def test_failed_background_task_is_logged_and_the_others_are_stopped(
    caplog: pytest.LogCaptureFixture,
) -> None:
    stopped = asyncio.Event()

    async def fail() -> None:
        raise ValueError("no reason")

    async def work() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            stopped.set()

    with caplog.at_level(logging.ERROR):
        async with background(fail(), work()):
            await asyncio.sleep(0)
    assert stopped.is_set()
    (record,) = caplog.records
    assert "fail failed" in record.getMessage()
    assert record.exc_info is not None
    assert "no reason" in str(record.exc_info[1])


async def test_handover_blocks_its_thread_until_items_are_released() -> None:
    received: asyncio.Queue[int] = asyncio.Queue()
    handover: Handover[int] = Handover(received.put_nowait, 2)
    put = threading.Semaphore(0)

    def run() -> None:
        for number in range(3):
            handover.put(number)
            put.release()

    thread = threading.Thread(target=run)
    thread.start()
    assert [await received.get() for _ in range(2)] == [0, 1]
    assert await asyncio.to_thread(lambda: put.acquire() and put.acquire())
    assert thread.is_alive()
    assert received.empty()
    handover.release()
    assert await received.get() == 2
    await asyncio.to_thread(thread.join)


async def test_closed_handover_releases_its_thread() -> None:
    received = list[int]()
    handover: Handover[int] = Handover(received.append, 1)
    handover.put(0)
    thread = threading.Thread(target=handover.put, args=(1,))
    thread.start()
    handover.close()
    await asyncio.to_thread(thread.join)
    assert received == [0]
