"""Resume tokens: what comes back, and what is refused."""

import base64
import zlib
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mev.wire.pb.resume_pb2 import ResumeToken, ResumeTopic
from mev.wire.registry import BY_TOPIC, EVENT_TYPES
from mev.wire.resume import MAX_TOKEN_CHARS, BadResumeError, decode, encode, fingerprint

offsets = st.one_of(st.integers(0, 1000), st.integers(2**40, 2**63 - 1))
places = st.tuples(st.sampled_from(sorted(BY_TOPIC)), st.integers(0, 70))
positions = st.dictionaries(places, offsets, max_size=40)
tokens = st.builds(encode, st.text(max_size=30), positions, st.just(sorted(BY_TOPIC)))


def wrap(payload: bytes) -> str:
    return base64.urlsafe_b64encode(zlib.crc32(payload).to_bytes(4) + payload).rstrip(b"=").decode()


@given(st.text(max_size=30), positions, st.sets(st.sampled_from(sorted(BY_TOPIC))))
def test_a_token_returns_the_positions_of_its_topics(
    log: str, some: dict[tuple[str, int], int], topics: set[str]
) -> None:
    wanted = {at: offset for at, offset in some.items() if at[0] in topics}
    assert decode(encode(log, some, topics), EVENT_TYPES) == (fingerprint(log), wanted)


@given(tokens, st.data())
def test_a_token_that_was_cut_short_or_changed_is_refused(token: str, data: st.DataObject) -> None:
    cut = token[: data.draw(st.integers(0, len(token) - 1))]
    place = data.draw(st.integers(0, len(token) - 1))
    other = data.draw(st.characters().filter(lambda character: character != token[place]))
    for wrong in (
        cut,
        token + "A",
        token + "=",
        " " + token,
        token[:place] + other + token[place + 1 :],
    ):
        with pytest.raises(BadResumeError):
            decode(wrong, EVENT_TYPES)


@given(st.one_of(st.text(), st.binary().map(wrap)))
def test_any_text_is_read_or_refused_with_its_code(text: str) -> None:
    with suppress(BadResumeError):
        decode(text, EVENT_TYPES)


def test_an_offset_out_of_range_is_refused() -> None:
    token = ResumeToken(log=1, topics=[ResumeTopic(type="tick", next=[2**64 - 1])])
    with pytest.raises(BadResumeError, match="out of range"):
        decode(wrap(token.SerializeToString()), EVENT_TYPES)


def test_an_event_type_that_the_server_does_not_know_is_left_out() -> None:
    token = ResumeToken(
        log=1,
        topics=[ResumeTopic(type="of_tomorrow", next=[5]), ResumeTopic(type="tick", next=[0, 8])],
    )
    assert decode(wrap(token.SerializeToString()), EVENT_TYPES) == (1, {("mev.tick.v1", 1): 7})


def test_a_token_is_small_and_bounded() -> None:
    few = {(topic, partition): 10**9 for topic in BY_TOPIC for partition in range(4)}
    assert len(encode("log", few, ["mev.tick.v1"])) < 60
    assert len(encode("log", few, BY_TOPIC)) < 500
    many = {("mev.tick.v1", partition): 10**9 for partition in range(15_000)}
    assert decode(encode("log", many, ["mev.tick.v1"]), EVENT_TYPES)[1] == many
    with pytest.raises(BadResumeError, match=str(MAX_TOKEN_CHARS)):
        decode("A" * (MAX_TOKEN_CHARS + 1), EVENT_TYPES)
