"""Following a node that skips, stalls, limits and fails."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from mev.capture.follow import Block, Follower, Position
from mev.capture.model import BadInputError
from mev.capture.rpc import Client, RpcError
from tests.unit.capture.node import Node, Reply


@pytest.fixture
def pauses() -> list[float]:
    return []


@pytest.fixture
def client(node: Node, pauses: list[float]) -> Iterator[Client]:
    client = Client(node.url, attempts=4, sleep=pauses.append, requests_per_second=1e9)
    yield client
    client.close()


def follow(client: Client, start: int | None, stop_after: int, *, not_ready_polls: int = 5) -> list[Block]:
    follower = Follower(client, sleep=lambda _s: None, not_ready_polls=not_ready_polls)
    return list(follower.blocks(start, stop_after=stop_after))


def error(code: int) -> Reply:
    return {"error": {"code": code, "message": "no"}}


def test_every_slot_is_asked_for_once(node: Node, client: Client) -> None:
    blocks = follow(client, 101, 104)
    assert [(block.slot, block.value and block.value["slot"]) for block in blocks] == [(slot, slot) for slot in range(101, 105)]
    method, (slot, options) = node.asked[1]
    assert (method, slot, options["maxSupportedTransactionVersion"], options["encoding"]) == ("getBlock", 101, 0, "json")


def test_it_starts_at_the_tip(client: Client) -> None:
    assert [block.slot for block in follow(client, None, 105)] == [105]


def test_it_waits_for_the_tip(node: Node, client: Client) -> None:
    node.queued["getSlot"] = [{"result": 99}, {"result": 99}, {"result": 100}]
    assert [block.slot for block in follow(client, 100, 100)] == [100]
    assert [method for method, _ in node.asked] == ["getSlot"] * 3 + ["getBlock"]


@pytest.mark.parametrize("code", [-32001, -32007, -32009])
def test_skipped_slots_are_normal(node: Node, client: Client, code: int) -> None:
    node.queued["getBlock"] = [error(code)]
    assert [block.value is None for block in follow(client, 101, 102)] == [True, False]


@pytest.mark.parametrize("reply", [error(-32004), error(-32014), {"result": None}])
def test_a_block_that_is_not_ready_is_asked_for_again(node: Node, client: Client, reply: Reply) -> None:
    node.queued["getBlock"] = [reply, reply]
    assert [block.value is None for block in follow(client, 101, 101)] == [False]


def test_a_block_that_never_comes_is_given_up(node: Node, client: Client) -> None:
    node.default["getBlock"] = lambda _params: error(-32004)
    assert [block.value for block in follow(client, 101, 101, not_ready_polls=3)] == [None]
    assert len(node.asked) == 4


def test_another_refusal_ends_it(node: Node, client: Client) -> None:
    node.queued["getBlock"] = [error(-32602)]
    with pytest.raises(RpcError, match="getBlock 101: no"):
        follow(client, 101, 101)


def test_retry_after_is_kept(node: Node, client: Client, pauses: list[float]) -> None:
    node.queued["getSlot"] = [(429, {"Retry-After": "7"}, b"slow down"), (503, {"Retry-After": "99999"}, b"")]
    assert client.slot("confirmed") == 105
    assert pauses == [7, 30]


@pytest.mark.parametrize(
    "reply", [(429, {}, b""), (500, {}, b"oops"), (200, {}, b"<html>"), {"error": {"code": -32005, "message": "behind"}}]
)
def test_failures_are_tried_again_with_growing_pauses(node: Node, client: Client, pauses: list[float], reply: Reply) -> None:
    node.queued["getSlot"] = [reply] * 3
    assert client.slot("confirmed") == 105
    assert len(pauses) == 3
    assert all(0.125 * 2**n <= pause <= 0.25 * 2**n for n, pause in enumerate(pauses))


def test_it_gives_up_in_the_end(node: Node, client: Client) -> None:
    node.queued["getSlot"] = [(429, {}, b"")] * 4
    with pytest.raises(RpcError, match=r"^http://127.0.0.1:\d+: getSlot failed 4 times, last: HTTP 429$"):
        client.slot("confirmed")


def test_a_refused_key_is_not_tried_again(node: Node, client: Client) -> None:
    node.queued["getSlot"] = [(403, {}, b"forbidden")]
    with pytest.raises(RpcError, match="HTTP 403"):
        client.slot("confirmed")
    assert len(node.asked) == 1


def test_an_answer_too_large(node: Node) -> None:
    client = Client(node.url, max_body_bytes=20, requests_per_second=1e9)
    node.queued["getSlot"] = [{"result": "x" * 100}]
    with pytest.raises(RpcError, match="larger than 20 bytes"):
        client.slot("confirmed")
    client.close()


def test_nobody_there(node: Node) -> None:
    client = Client("http://127.0.0.1:1/", attempts=2, sleep=lambda _s: None)
    with pytest.raises(RpcError, match="failed 2 times"):
        client.slot("confirmed")
    client.close()


def test_requests_keep_their_distance(node: Node) -> None:
    pauses: list[float] = []
    client = Client(node.url, sleep=pauses.append, requests_per_second=2)
    for _ in range(3):
        client.slot("confirmed")
    assert 0.3 < pauses[0] <= 0.5 < pauses[1] <= 1.0
    client.close()


@pytest.mark.parametrize("url", ["", "nonsense", "ftp://host/", "http://", "http://[::1"])
def test_a_url_that_is_none(url: str) -> None:
    with pytest.raises(BadInputError):
        Client(url)


def test_the_position_survives(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "position.json"
    assert Position(path).read() is None
    Position(path).write(7)
    Position(path).write(8)
    assert Position(path).read() == 8
    assert [each.name for each in path.parent.iterdir()] == ["position.json"]


@pytest.mark.parametrize("text", ["", "{}", "7", '{"next_slot": "x"}', '{"next_slot": -1}'])
def test_a_position_that_is_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "position.json"
    path.write_text(text)
    with pytest.raises(BadInputError, match="not a capture position"):
        Position(path).read()
