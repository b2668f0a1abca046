"""Tests of content codings: valid input is decoded, all else is an error, sizes are bounded."""

import contextlib
import gzip
import random
from collections.abc import Callable

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from mev.core.coding import BodyTooLargeError, UndecodableBodyError, decode

LIMIT = 4 << 20
ENCODERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "zstd": zstandard.ZstdCompressor().compress,
}
codings = st.sampled_from(sorted(ENCODERS))


async def decoded(body: bytes, coding: str, *, limit: int = LIMIT, ratio: float = 100) -> bytes:
    return await decode(body, coding, limit_bytes=limit, max_ratio=ratio)


@given(coding=codings, parts=st.lists(st.binary(max_size=500), min_size=1, max_size=5))
async def test_parts_are_decoded_one_after_another(coding: str, parts: list[bytes]) -> None:
    body = b"".join(map(ENCODERS[coding], parts))
    assert await decoded(body, coding) == b"".join(parts)


@pytest.mark.parametrize("coding", ENCODERS)
@pytest.mark.parametrize("size", [65_536, 262_144, 262_145, 3_000_000])
async def test_bodies_of_many_pieces_are_whole(coding: str, size: int) -> None:
    body = random.Random(size).randbytes(size // 2).hex().encode()
    assert await decoded(ENCODERS[coding](body), coding) == body


@given(coding=codings, body=st.binary(max_size=200), cut=st.integers(min_value=0))
async def test_truncated_body_is_an_error(coding: str, body: bytes, cut: int) -> None:
    whole = ENCODERS[coding](body)
    part = whole[: 1 + cut % (len(whole) - 1)]
    with pytest.raises(UndecodableBodyError):
        await decoded(part, coding)


@given(coding=codings, body=st.binary(max_size=200))
async def test_any_bytes_are_decoded_or_an_error(coding: str, body: bytes) -> None:
    with contextlib.suppress(UndecodableBodyError, BodyTooLargeError):
        assert len(await decoded(body, coding, limit=1 << 16)) <= 1 << 16


@given(coding=codings, garbage=st.binary(min_size=1, max_size=50))
async def test_what_follows_a_body_is_decoded_or_an_error(coding: str, garbage: bytes) -> None:
    try:
        await decoded(ENCODERS[coding](b"x") + garbage, coding)
    except UndecodableBodyError:
        return
    assert await decoded(garbage, coding) == b"", "only what is empty itself may follow"


@pytest.mark.parametrize("coding", ENCODERS)
async def test_size_after_decoding_is_bounded(coding: str) -> None:
    body = ENCODERS[coding](b"ab" * 500)
    assert len(await decoded(body, coding, limit=1000)) == 1000
    with pytest.raises(BodyTooLargeError, match="999"):
        await decoded(body, coding, limit=999)


@pytest.mark.parametrize("coding", ENCODERS)
async def test_ratio_is_bounded_above_a_megabyte(coding: str) -> None:
    small, large = (ENCODERS[coding](bytes(size)) for size in (1 << 20, (1 << 20) + 1))
    assert len(await decoded(small, coding, ratio=2)) == 1 << 20
    with pytest.raises(BodyTooLargeError, match="2 times"):
        await decoded(large, coding, ratio=2)


@pytest.mark.parametrize("coding", ENCODERS)
async def test_number_of_parts_is_bounded(coding: str) -> None:
    part = ENCODERS[coding](b"")
    assert await decoded(part * 100, coding) == b""
    with pytest.raises(UndecodableBodyError, match="100 parts"):
        await decoded(part * 101, coding)
