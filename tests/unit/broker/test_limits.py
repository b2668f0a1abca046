"""Limits of restricted users: no request of theirs fills memory or disk, or takes long."""

import asyncio
import contextlib
import struct
from pathlib import Path

import pytest

from mev.broker.groups import RESTRICTED_GROUPS, ConsumerGroups, GroupError
from mev.broker.offsets import CommittedOffsets
from mev.broker.wire import ErrorCode
from tests.unit.broker.client import (
    API_VERSIONS,
    FETCH,
    JOIN_GROUP,
    METADATA,
    OFFSET_COMMIT,
    PARTITIONS,
    TOPIC,
    Streams,
    asked,
    batch,
    joined,
    produced,
    text,
)

MOST = (1 << 31) - 1
MIB = 1 << 20


def fetch(*partitions: int) -> bytes:
    """Return the body of a Fetch of everything in `partitions`."""
    head = struct.pack(">iiiib", -1, 0, 1, MOST, 0) + struct.pack(">i", 1) + text(TOPIC)
    parts = [struct.pack(">iqi", number, 0, MOST) for number in partitions]
    return head + struct.pack(">i", len(parts)) + b"".join(parts)


def metadata(names: int) -> bytes:
    return struct.pack(">i", names) + text(TOPIC) * names + b"\0"


def join(group: str, session_ms: int = 10_000) -> bytes:
    head = text(group) + struct.pack(">ii", session_ms, 1000) + text("") + text("consumer")
    return head + struct.pack(">i", 1) + text("range") + struct.pack(">i", 0)


def commit(group: str, note: str = "") -> bytes:
    head = text(group) + struct.pack(">i", -1) + text("") + struct.pack(">qi", 0, 1) + text(TOPIC)
    return head + struct.pack(">iiq", 1, 0, 1) + text(note)


async def code(streams: Streams, key: int, version: int, body: bytes, at: int) -> int:
    """Return the error code at a position of the answer."""
    return int(struct.unpack_from(">h", await asked(streams, key, version, body), at)[0])


@pytest.mark.parametrize(
    ("key", "version", "body"),
    [
        (API_VERSIONS, 0, bytes(300 << 10)),
        (METADATA, 4, metadata(1001)),
        (FETCH, 4, fetch(*range(1001))),
        (FETCH, 4, fetch(0, 0)),
    ],
    ids=["large", "topics", "partitions", "partition twice"],
)
async def test_excessive_request_of_an_agent_ends_its_connection(
    port: int, key: int, version: int, body: bytes
) -> None:
    agent = await joined(port, "agent")
    assert await produced(agent, TOPIC, batch(payload=bytes(MIB))) == ErrorCode.NONE
    with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
        await asked(agent, key, version, body)
    agent[1].close()


async def test_topic_that_is_named_often_is_described_once(port: int) -> None:
    agent = await joined(port, "agent")
    answer = await asked(agent, METADATA, 4, metadata(1000))
    assert answer.count(TOPIC.encode()) == 1
    agent[1].close()


@pytest.mark.parametrize(("user", "most"), [("agent", MIB // 2), ("mev", 16 * MIB)])
async def test_answer_of_a_fetch_is_limited(port: int, user: str, most: int) -> None:
    streams = await joined(port, user)
    large = batch(payload=bytes(MIB))
    for partition in [*range(PARTITIONS)] * 3:
        assert await produced(streams, TOPIC, large, partition) == ErrorCode.NONE
    answer = await asked(streams, FETCH, 4, fetch(*range(PARTITIONS)))
    assert most - 2 * MIB < len(answer) <= most + 2 * MIB  # with the last batch whole
    streams[1].close()


async def test_agents_have_few_groups(port: int) -> None:
    agent, ours = await joined(port, "agent"), await joined(port, "mev")
    for number in range(RESTRICTED_GROUPS):
        assert await code(agent, JOIN_GROUP, 1, join(f"g{number}"), 0) == ErrorCode.NONE
        assert await code(agent, OFFSET_COMMIT, 2, commit(f"c{number}"), 21) == ErrorCode.NONE
    full = ErrorCode.GROUP_MAX_SIZE_REACHED
    assert await code(agent, JOIN_GROUP, 1, join("more"), 0) == full
    assert await code(agent, OFFSET_COMMIT, 2, commit("more"), 21) == full
    assert await code(ours, JOIN_GROUP, 1, join("ours"), 0) == ErrorCode.NONE
    assert await code(ours, OFFSET_COMMIT, 2, commit("other"), 21) == ErrorCode.NONE
    for _, writer in (agent, ours):
        writer.close()


async def test_sessions_and_metadata_of_groups_are_limited(port: int) -> None:
    agent = await joined(port, "agent")
    long = join("g", session_ms=1_800_000)
    assert await code(agent, JOIN_GROUP, 1, long, 0) == ErrorCode.INVALID_SESSION_TIMEOUT
    assert await code(agent, JOIN_GROUP, 1, join("g" * 256), 0) == ErrorCode.INVALID_GROUP_ID
    assert await code(agent, OFFSET_COMMIT, 2, commit("g" * 256), 21) == ErrorCode.INVALID_GROUP_ID
    noted = commit("g", "x" * 4097)
    assert await code(agent, OFFSET_COMMIT, 2, noted, 21) == ErrorCode.OFFSET_METADATA_TOO_LARGE
    agent[1].close()


async def test_members_of_agents_have_a_limit_of_memory() -> None:
    groups, refused = ConsumerGroups(), []

    async def member() -> None:
        try:
            await groups.join(
                "g", "", "x", "consumer", {"range": bytes(250 << 10)},
                session_ms=10_000, rebalance_ms=10_000, is_restricted=True,
            )  # fmt: skip
        except GroupError as error:
            refused.append(error.code)

    members = [asyncio.create_task(member()) for _ in range(100)]
    await asyncio.sleep(0)  # all have asked
    assert refused
    for each in members:
        each.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.gather(*members, return_exceptions=True)
    assert refused == [ErrorCode.GROUP_MAX_SIZE_REACHED] * len(refused)
    assert (100 - len(refused)) * (250 << 10) <= 16 * MIB


def test_file_of_offsets_is_written_again_only_when_it_has_doubled(tmp_path: Path) -> None:
    path, note = tmp_path / "offsets", "x" * 30_000
    offsets = CommittedOffsets(path)
    files, commits = set(), 300
    for number in range(commits):
        offsets.put(f"g{number}", {(TOPIC, 0): (number, note)})
        files.add(path.stat().st_ino)
    assert len(files) <= 8
    for number in range(1000):
        offsets.put("g0", {(TOPIC, 0): (number, note)})
    assert path.stat().st_size <= 2 * (commits + 1) * (len(note) + 100)
    offsets.close()
    again = CommittedOffsets(path)
    assert again.groups == commits
    assert again.get("g0", TOPIC, 0) == (999, note)
    again.close()
