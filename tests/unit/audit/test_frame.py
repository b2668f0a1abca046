from hypothesis import given
from hypothesis import strategies as st

from mev.audit.frame import RECORD, BadFrameError, Frame, encode, scan
from mev.crypto.merkle import leaf_hash

BODIES = st.lists(st.binary(max_size=60), max_size=5)


def read(data: bytes) -> tuple[list[Frame], BadFrameError | None]:
    frames: list[Frame] = []
    try:
        frames.extend(scan(data))
    except BadFrameError as error:
        return frames, error
    return frames, None


@given(BODIES)
def test_what_is_encoded_is_read_and_hashed_as_a_leaf(bodies: list[bytes]) -> None:
    data = b"".join(encode(RECORD, body)[0] for body in bodies)
    frames, error = read(data)
    assert error is None
    assert [frame.body for frame in frames] == bodies
    assert [frame.hashed for frame in frames] == [leaf_hash(body) for body in bodies]


@given(bodies=BODIES.filter(bool), data=st.data())
def test_a_cut_is_torn_and_a_change_is_not(bodies: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(encode(RECORD, body)[0] for body in bodies)
    cut = data.draw(st.integers(0, len(whole)))
    frames, error = read(whole[:cut])
    assert error is None or error.torn
    assert [frame.body for frame in frames] == bodies[: len(frames)]

    place, bit = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(0, 7))
    changed = bytearray(whole)
    changed[place] ^= 1 << bit
    _, error = read(bytes(changed))
    assert error is not None
    assert not error.torn


@given(st.binary(max_size=400))
def test_arbitrary_bytes_raise_nothing_else(data: bytes) -> None:
    read(data)


@given(bodies=BODIES, zeros=st.integers(1025, 3000))
def test_space_never_written_is_torn(bodies: list[bytes], zeros: int) -> None:
    frames, error = read(b"".join(encode(RECORD, body)[0] for body in bodies) + bytes(zeros))
    assert error is not None
    assert error.torn
    assert [frame.body for frame in frames] == bodies
