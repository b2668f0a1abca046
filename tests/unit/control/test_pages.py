"""Pages of long lists."""

import asyncio
import json
import time

import pytest

from mev.control.pages import Json, Pages
from mev.core.paging import InvalidCursorError

ROWS = [(f"r{number}", number) for number in range(300)]


def view(number: int) -> Json:
    """Take as long as a command to ten thousand agents does."""
    time.sleep(0.001)
    return {"number": number}


async def test_event_loop_goes_on_while_a_page_is_made() -> None:
    making = asyncio.create_task(Pages().page("ann", ROWS, view, 1000, None))
    turns = 0
    while not making.done():
        await asyncio.sleep(0)
        turns += 1
    assert turns > 50
    assert len(json.loads(bytes(making.result().body))["items"]) == len(ROWS)


async def test_a_reader_gets_one_page_at_a_time_and_others_do_not_wait_for_it() -> None:
    pages, shown = Pages(), list[str]()

    async def read(reader: str, name: str) -> None:
        def noted(number: int) -> Json:
            shown.append(name)
            return view(number)

        await pages.page(reader, ROWS, noted, 1000, None)

    await asyncio.gather(read("greedy", "1"), read("greedy", "2"), read("bob", "3"))
    ends = {name: len(shown) - shown[::-1].index(name) for name in "123"}
    assert shown.index("2") >= ends["1"], "the second of one reader waits for the first"
    assert shown.index("3") < ends["1"], "that of another does not"


async def test_pages_follow_one_another() -> None:
    pages, seen, cursor = Pages(), [], None
    while True:
        page = json.loads(
            bytes(
                (
                    await pages.page("ann", ROWS[:10], lambda number: {"number": number}, 4, cursor)
                ).body
            )
        )
        seen += [item["number"] for item in page["items"]]
        if (cursor := page["next_cursor"]) is None:
            break
    assert seen == list(range(10))
    with pytest.raises(InvalidCursorError):
        await pages.page("ann", ROWS, view, 4, "unknown")


async def test_event_loop_goes_on_while_the_rows_of_one_view_are_made() -> None:
    numbers = [number for _, number in ROWS]
    making = asyncio.create_task(
        Pages().with_rows("ann", lambda: {"id": "c1"}, "deliveries", numbers, view)
    )
    turns = 0
    while not making.done():
        await asyncio.sleep(0)
        turns += 1
    assert turns > 50
    expected = {"id": "c1", "deliveries": [{"number": number} for number in numbers]}
    assert json.loads(bytes(making.result().body)) == expected
