"""Tests of pages and cursors."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mev.core.paging import (
    InvalidCursorError,
    decode_cursor,
    encode_cursor,
    page_of,
    rows_after,
)


def name(number: int) -> str:
    return f"row-{number}"


@pytest.mark.parametrize("count", [0, 1, 3, 4, 6, 7])
def test_pages_have_every_row_once(count: int) -> None:
    rows, seen, cursor = list(range(count)), list[int](), None
    while True:
        page, cursor = page_of(rows_after(rows, cursor, name), 3, name)
        assert len(page) <= 3
        seen += page
        if cursor is None:
            break
    assert seen == rows


def test_cursor_of_no_row_is_refused() -> None:
    with pytest.raises(InvalidCursorError) as refused:
        rows_after([1, 2], "row-3", name)
    assert (refused.value.code, refused.value.status) == ("invalid_cursor", 400)
    assert refused.value.fields == {"parameter": "cursor"}


@given(
    st.lists(
        st.one_of(
            st.integers(-(2**63), 2**64 - 1),
            st.floats(allow_nan=False, allow_infinity=False),
            st.text(st.characters(exclude_categories=["Cs"])),
        )
    )
)
def test_cursor_holds_its_position(position: list[object]) -> None:
    assert decode_cursor(encode_cursor(position)) == position


@given(st.text() | st.binary().map(lambda data: base64.urlsafe_b64encode(data).decode()))
def test_any_text_is_a_position_or_an_invalid_cursor(text: str) -> None:
    try:
        position = decode_cursor(text)
    except InvalidCursorError:
        return
    assert isinstance(position, list)
