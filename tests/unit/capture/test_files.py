"""Reading files: every packing, and every way a file can be damaged."""

import gzip
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from mev.capture.files import Document, Reader
from mev.capture.model import BadInputError

RECORDS = [{"slot": number, "pad": "x" * 50} for number in range(20)]
LINES = b"\n".join(map(orjson.dumps, RECORDS)) + b"\n"
SKIPPED = b"\x5a\x2a\x4d\x18\x05\x00\x00\x00index"
PACKINGS: dict[str, Callable[[bytes], bytes]] = {
    "plain": lambda data: data,
    "gzip": gzip.compress,
    "zstandard": zstandard.compress,
    "gzip in parts": lambda data: gzip.compress(data[:300]) + gzip.compress(data[300:]),
    "gzip padded": lambda data: gzip.compress(data) + bytes(512),
    "zstandard in parts": lambda data: (
        zstandard.compress(data[:300]) + zstandard.compress(data[300:])
    ),
    "zstandard with frames to skip": lambda data: (
        SKIPPED + zstandard.compress(data[:9]) + SKIPPED + zstandard.compress(data[9:]) + SKIPPED
    ),
}
TEXTS: dict[str, Callable[[bytes], bytes]] = {
    "plain": lambda data: data,
    "byte order mark": lambda data: b"\xef\xbb\xbf" + data,
    "CRLF": lambda data: data.replace(b"\n", b"\r\n"),
}


def read(data: bytes, reader: Reader | None = None) -> tuple[list[Any], list[str]]:
    """Return the values and the errors' texts."""
    found = list((reader or Reader(chunk_bytes=64)).stream(io.BytesIO(data), "f"))
    values = [each.value for each in found if isinstance(each, Document)]
    return values, [each.detail for each in found if isinstance(each, BadInputError)]


@pytest.mark.parametrize("packing", PACKINGS)
def test_lines(packing: str) -> None:
    assert read(PACKINGS[packing](LINES)) == (RECORDS, [])


@pytest.mark.parametrize("text", TEXTS)
def test_texts(text: str) -> None:
    assert read(TEXTS[text](LINES)) == (RECORDS, [])
    assert read(TEXTS[text](orjson.dumps(RECORDS, option=orjson.OPT_INDENT_2))) == ([RECORDS], [])


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("chunk_bytes", [4, 5, 7, 11, 63, 64, 65, 200])
def test_packing_may_be_cut_anywhere_between_its_parts(packing: str, chunk_bytes: int) -> None:
    assert read(PACKINGS[packing](LINES), Reader(chunk_bytes=chunk_bytes)) == (RECORDS, [])


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("option", [0, orjson.OPT_INDENT_2])
def test_one_document(packing: str, option: int) -> None:
    assert read(PACKINGS[packing](orjson.dumps(RECORDS, option=option))) == ([RECORDS], [])


def test_a_list_with_one_record_a_line() -> None:
    text = b"[\n" + b",\n".join(map(orjson.dumps, RECORDS)) + b"\n]\n"
    assert read(text) == ([RECORDS], [])


def test_blank_lines_are_passed_over_and_counted() -> None:
    values, errors = read(b'\n{"a":1}\n\n\r\n{"b"\n')
    assert values == [{"a": 1}]
    assert errors[0].startswith("f: line 5, column 5: not JSON")


@pytest.mark.parametrize(
    "bad",
    [b'{"a":', b"plain text", b'{"a":"\xff\xfe"}', b"{'a':1}", b'{"a":1e999}', b"[1,2", b"{]}"],
)
@pytest.mark.parametrize("at", [0, 1, 19])
def test_one_bad_line_is_named_and_the_rest_kept(bad: bytes, at: int) -> None:
    lines = LINES.splitlines()
    lines.insert(at, bad)
    values, errors = read(b"\n".join(lines))
    assert values == RECORDS
    assert len(errors) == 1
    assert errors[0].startswith(f"f: line {at + 1}, column ")


def test_a_text_file_is_one_error() -> None:
    values, errors = read(b"Dear all,\nthis is no JSON.\n" * 500)
    assert values == []
    assert errors == ["f: line 1, column 1: not JSON: unexpected character, expected a JSON value"]


def test_a_broken_document_is_one_error() -> None:
    values, errors = read(orjson.dumps(RECORDS, option=orjson.OPT_INDENT_2)[:-40])
    assert (values, len(errors)) == ([], 1)


@pytest.mark.parametrize("packing", ["gzip", "zstandard"])
def test_truncated_compression(packing: str) -> None:
    packed = PACKINGS[packing](
        b"".join(
            orjson.dumps({"n": number, "pad": str(number**40)}) + b"\n" for number in range(2000)
        )
    )
    values, errors = read(packed[: len(packed) // 2])
    assert len(errors) == 1
    assert errors[0].endswith("the compressed data ends too early: the file is truncated")
    assert [value["n"] for value in values] == list(range(len(values)))
    if packing == "gzip":
        assert len(values) > 100
        assert errors[0].startswith(f"f: line {len(values) + 1}: ")


@pytest.mark.parametrize("packing", ["gzip", "zstandard"])
def test_damaged_compression(packing: str) -> None:
    packed = bytearray(PACKINGS[packing](LINES))
    packed[len(packed) // 2] ^= 0xFF
    values, errors = read(bytes(packed))
    assert len(errors) == 1
    assert values == RECORDS[: len(values)]


def test_something_else_after_the_compressed_data() -> None:
    values, errors = read(gzip.compress(LINES) + b"trailing")
    assert values == RECORDS
    assert "neither gzip nor zstandard" in errors[0]


def test_nothing_at_all() -> None:
    assert read(b"") == ([], ["f: empty"])
    assert read(gzip.compress(b"")) == ([], ["f: empty"])


def test_the_limit_on_one_document() -> None:
    small = Reader(max_document_bytes=100)
    assert read(b'{"a":1}\n' + orjson.dumps("x" * 200) + b'\n{"b":2}\n', small) == (
        [{"a": 1}],
        ["f: line 2: a line longer than 100 bytes"],
    )
    assert read(b"[\n" + b"1,\n" * 200 + b"1]", small) == (
        [],
        ["f: a document larger than 100 bytes"],
    )


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    for path in (tmp_path / "absent", tmp_path):
        (error,) = Reader().file(path)
        assert isinstance(error, BadInputError)
        assert error.place == str(path)


@pytest.mark.parametrize(
    ("name", "slot"),
    [
        ("block-254170887.json.gz", 254170887),
        ("blocks.json", None),
        ("254170887-254170999.json", None),
    ],
)
def test_a_slot_in_the_name(tmp_path: Path, name: str, slot: int | None) -> None:
    (tmp_path / name).write_bytes(b"{}")
    (document,) = Reader().file(tmp_path / name)
    assert isinstance(document, Document)
    assert document.slot == slot


@given(
    st.binary(max_size=200),
    st.sampled_from([b"", b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"{", b"["]),
)
def test_any_bytes_are_answered(data: bytes, start: bytes) -> None:
    for each in Reader(chunk_bytes=16).stream(io.BytesIO(start + data), "f"):
        assert isinstance(each, Document | BadInputError)


@given(st.integers(0, len(LINES)), st.sampled_from(sorted(PACKINGS)))
def test_any_cut_keeps_a_prefix(cut: int, packing: str) -> None:
    packed = PACKINGS[packing](LINES)
    values, _ = read(packed[: min(cut, len(packed))])
    assert values == RECORDS[: len(values)]
