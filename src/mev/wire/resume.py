"""Resume tokens: a subscription's position as opaque text.

A token identifies the log of its offsets. It is not secret and grants no access; a checksum detects
damage.
"""

import base64
import hashlib
import zlib
from collections.abc import Iterable, Mapping
from functools import lru_cache

from google.protobuf.message import DecodeError

from mev.core.errors import InvalidInputError
from mev.wire.pb.resume_pb2 import ResumeToken, ResumeTopic
from mev.wire.registry import BY_TOPIC, EventType

MAX_TOKEN_CHARS = 128 * 1024
"""Maximum length of a token: enough for more than 15,000 partitions."""
_CHECKSUM_BYTES = 4
_MAX_FOLLOWING = 2**63
Position = tuple[str, int]
_REMEDY = "give it back as the server sent it, or start somewhere else"


class BadResumeError(InvalidInputError):
    """The resume token is not one that the server sent."""

    code = "bad_resume"


@lru_cache(maxsize=64)
def fingerprint(log: str) -> int:
    """Return the number that identifies `log` in tokens."""
    return int.from_bytes(hashlib.blake2b(log.encode(), digest_size=8).digest())


def encode(log: str, positions: Mapping[Position, int], kafka_topics: Iterable[str]) -> str:
    """Return the token for `positions` in the partitions of `kafka_topics`."""
    by_topic: dict[str, list[int]] = {topic: [] for topic in sorted(kafka_topics)}
    for (topic, partition), offset in positions.items():
        following = by_topic.get(topic)
        if following is None:
            continue
        if partition >= len(following):
            following.extend([0] * (partition + 1 - len(following)))
        following[partition] = offset + 1
    topics = [
        ResumeTopic(type=BY_TOPIC[topic].name, next=following)
        for topic, following in by_topic.items()
    ]
    return _text(ResumeToken(log=fingerprint(log), topics=topics).SerializeToString())


def decode(text: str, types: Mapping[str, EventType]) -> tuple[int, dict[Position, int]]:
    """Return the log's number and the next offsets in a token.

    Event types that are not in `types` are omitted.

    :raises BadResumeError: if it is not an output of :func:`encode`.
    """
    token = _parse(text)
    found: dict[Position, int] = {}
    for topic in token.topics:
        type_ = types.get(topic.type)
        for partition, following in enumerate(topic.next):
            if following > _MAX_FOLLOWING:
                raise _refusal("has an offset that is out of range")
            if type_ is not None and following:
                found[type_.topic, partition] = following - 1
    return token.log, found


def _parse(text: str) -> ResumeToken:
    if len(text) > MAX_TOKEN_CHARS:
        raise _refusal(f"has more than {MAX_TOKEN_CHARS} characters")
    try:
        checked = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        payload = checked[_CHECKSUM_BYTES:]
        token = ResumeToken.FromString(payload)
    except (ValueError, DecodeError):
        raise _refusal("is damaged or cut short") from None
    if not payload or _text(payload) != text:
        raise _refusal("is damaged or cut short")
    return token


def _refusal(fault: str) -> BadResumeError:
    return BadResumeError(f"the resume token {fault}; {_REMEDY}", field="from")


def _text(payload: bytes) -> str:
    checked = zlib.crc32(payload).to_bytes(_CHECKSUM_BYTES) + payload
    return base64.urlsafe_b64encode(checked).rstrip(b"=").decode()
