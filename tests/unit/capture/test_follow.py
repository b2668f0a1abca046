"""Following a node that skips, stalls, limits and fails."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from mev.capture.follow import SlotFile, SlotFollower, SlotOutcome, SlotResult
from mev.capture.gaps import CaptureFileError
from mev.capture.model import BadInputError
from mev.capture.rpc import RpcClient, RpcError
from tests.unit.capture.node import Clock, Node, Reply

NOT_GZIP: Reply = (200, {"Content-Encoding": "gzip"}, b"plain text")
BROKEN_CHUNK: Reply = (200, {"Transfer-Encoding": "chunked"}, b"zz\r\n")
HTML: Reply = (200, {"Content-Type": "text/html"}, b"<html>try later</html>")


@pytest.fixture
def pauses() -> list[float]:
    return []


@pytest.fixture
def client(node: Node, pauses: list[float]) -> Iterator[RpcClient]:
    client = RpcClient(node.url, attempts=4, sleep=pauses.append, requests_per_second=1e9)
    yield client
    client.close()


class Followed:
    """Follows with a clock that only waiting moves, and keeps what is said."""

    def __init__(self, client: RpcClient, **options: Any) -> None:
        self.clock = Clock()
        self.lines: list[str] = []
        self.follower = SlotFollower(
            client,
            report=self.lines.append,
            sleep=self.clock.sleep,
            clock=self.clock.read,
            **options,
        )

    def slots(self, start: int | None, stop_after: int) -> list[SlotResult]:
        return list(self.follower.blocks(start, stop_after=stop_after))

    def outcomes(self, start: int | None, stop_after: int) -> dict[int, SlotOutcome]:
        return {block.slot: block.outcome for block in self.slots(start, stop_after)}


@pytest.fixture
def followed(client: RpcClient) -> Followed:
    return Followed(client)


def error(code: Any) -> Reply:
    return {"error": {"code": code, "message": "no"}}


def block(slot: int, parent: int | None = None) -> Reply:
    return {"result": {"parentSlot": slot - 1 if parent is None else parent, "transactions": []}}


def test_every_slot_is_asked_for_once(node: Node, followed: Followed) -> None:
    blocks = followed.slots(101, 104)
    assert [(block.slot, block.value and block.value["slot"]) for block in blocks] == [
        (slot, slot) for slot in range(101, 105)
    ]
    assert [block.next_slot for block in blocks] == [102, 103, 104, 105]
    method, (slot, options) = node.asked[1]
    assert (method, slot, options["maxSupportedTransactionVersion"], options["encoding"]) == (
        "getBlock",
        101,
        1,
        "json",
    )


def test_it_starts_at_the_tip(followed: Followed) -> None:
    assert [block.slot for block in followed.slots(None, 105)] == [105]


def test_it_waits_for_the_tip(node: Node, followed: Followed) -> None:
    node.queued["getSlot"] = [{"result": 99}, {"result": 99}, {"result": 100}]
    assert [block.slot for block in followed.slots(100, 100)] == [100]
    assert [method for method, _ in node.asked] == ["getSlot"] * 3 + ["getBlock"]


@pytest.mark.parametrize("code", [-32007, -32009])
def test_skipped_slots_are_normal(node: Node, followed: Followed, code: int) -> None:
    node.queued["getBlock"] = [error(code)]
    assert followed.outcomes(101, 102) == {101: SlotOutcome.SKIPPED, 102: SlotOutcome.READ}


@pytest.mark.parametrize("reply", [error(-32004), error(-32014), {"result": None}])
def test_a_block_that_is_not_ready_is_asked_for_again(
    node: Node, followed: Followed, reply: Reply
) -> None:
    node.queued["getBlock"] = [reply, reply]
    assert followed.outcomes(101, 101) == {101: SlotOutcome.READ}


@pytest.mark.parametrize(
    "reply",
    [
        error(-32603),
        error(-32005),
        error(-32000),
        error("-32603"),
        {"error": "overloaded"},
        {"error": {"message": "no code"}},
        {"jsonrpc": "2.0", "id": 1},
        {"jsonrpc": "2.0", "id": 2, "result": {"parentSlot": 100, "transactions": []}},
        [],
        [{"jsonrpc": "2.0", "id": 1, "result": {"parentSlot": 100, "transactions": []}}],
        NOT_GZIP,
        BROKEN_CHUNK,
        HTML,
        (500, {}, b"oops"),
        (408, {}, b""),
    ],
)
def test_trouble_is_tried_again(node: Node, followed: Followed, reply: Reply) -> None:
    node.queued["getBlock"] = [reply, reply]
    assert followed.outcomes(101, 102) == {101: SlotOutcome.READ, 102: SlotOutcome.READ}


@pytest.mark.parametrize(
    "result",
    [
        {},
        {"transactions": 7},
        [],
        "text",
        7,
        {"parentSlot": 101, "transactions": []},
        {"parentSlot": 5000, "transactions": []},
        {"parentSlot": -1, "transactions": []},
        {"parentSlot": "100", "transactions": []},
        {"parentSlot": 100, "blockTime": "today", "transactions": []},
        {"parentSlot": 100, "blockTime": 2**62, "transactions": []},
    ],
)
def test_a_result_that_is_no_block_of_the_slot_is_tried_again(
    node: Node, followed: Followed, result: Any
) -> None:
    node.queued["getBlock"] = [{"result": result}]
    assert followed.outcomes(101, 101) == {101: SlotOutcome.READ}


def test_late_block_is_read_after_its_successors(node: Node, followed: Followed) -> None:
    """A block that comes 66 s late is read, and the next ones do not wait for it."""

    def answer(params: list[Any]) -> Reply:
        return error(-32004) if params[0] == 102 and followed.clock.now_s < 66 else block(params[0])

    node.default["getBlock"] = answer
    blocks = followed.slots(101, 104)
    assert [(each.slot, each.outcome) for each in blocks] == [
        (slot, SlotOutcome.READ) for slot in (101, 103, 104, 102)
    ]
    assert [each.next_slot for each in blocks] == [102, 102, 102, 105]
    assert 66 <= followed.clock.now_s < 80


def test_block_that_never_comes_is_missing(node: Node, followed: Followed) -> None:
    node.default["getBlock"] = lambda params: (
        error(-32004) if params[0] == 102 else block(params[0])
    )
    assert followed.outcomes(101, 103) == {
        101: SlotOutcome.READ,
        103: SlotOutcome.READ,
        102: SlotOutcome.MISSING,
    }
    assert 90 <= followed.clock.now_s < 110


def test_old_slots_that_stay_unavailable_cost_half_a_minute_together(
    node: Node, followed: Followed
) -> None:
    """Pruned slots, on a node that neither says what it has nor gives out blocks that tell."""
    node.default["getSlot"] = lambda _params: {"result": 9000}
    node.default["getBlock"] = lambda params: (
        error(-32004) if params[0] < 1050 else block(params[0])
    )
    outcomes = followed.outcomes(1000, 1060)
    assert [slot for slot, outcome in outcomes.items() if outcome is SlotOutcome.MISSING] == list(
        range(1000, 1050)
    )
    assert 30 <= followed.clock.now_s < 45


def test_unavailable_slots_that_the_chain_passes_over_cost_no_wait(
    node: Node, followed: Followed
) -> None:
    """Some nodes say -32004 for skipped slots that they have pruned."""
    empty = {1001, 1002, 1003, 1007}

    def answer(params: list[Any]) -> Reply:
        slot = params[0]
        return error(-32004) if slot in empty else block(slot, max(set(range(990, slot)) - empty))

    node.default |= {"getBlock": answer, "getSlot": lambda _params: {"result": 5000}}
    outcomes = followed.outcomes(1000, 1010)
    assert {slot for slot, outcome in outcomes.items() if outcome is SlotOutcome.SKIPPED} == empty
    assert len(outcomes) == 11
    assert followed.clock.now_s == 0


def test_parent_that_was_never_read_proves_nothing(node: Node, followed: Followed) -> None:
    """A node whose blocks all name the same parent must not turn a late slot into a skipped one."""
    node.default["getSlot"] = lambda _params: {"result": 5000}
    node.default["getBlock"] = lambda params: (
        error(-32004) if params[0] == 1002 else block(params[0], 7)
    )
    assert followed.outcomes(1000, 1004)[1002] is SlotOutcome.MISSING


def test_slots_before_the_nodes_first_block_are_one_gap(node: Node, followed: Followed) -> None:
    node.default |= {
        "getSlot": lambda _params: {"result": 500_000},
        "getFirstAvailableBlock": lambda _params: {"result": 400_000},
        "getBlock": lambda params: error(-32001) if params[0] < 400_000 else block(params[0]),
    }
    gap, *blocks = followed.slots(1000, 400_002)
    assert (gap.slot, gap.last, gap.outcome) == (1000, 399_999, SlotOutcome.MISSING)
    assert "first block is of slot 400000" in gap.reason
    assert [each.slot for each in blocks] == [400_000, 400_001, 400_002]


@pytest.mark.parametrize(
    ("code", "reason"),
    [(-32001, "deleted"), (-32011, "refuses it: no"), (-32602, "refuses it: no")],
)
def test_refused_slot_is_missing_at_once(
    node: Node, followed: Followed, code: int, reason: str
) -> None:
    node.queued["getBlock"] = [error(code)]
    first, second = followed.slots(101, 102)
    assert (first.outcome, reason in first.reason) == (SlotOutcome.MISSING, True)
    assert (second.outcome, followed.clock.now_s) == (SlotOutcome.READ, 0)


def test_block_with_a_newer_version_is_asked_for_in_any_version(
    node: Node, followed: Followed
) -> None:
    node.default["getBlock"] = lambda params: (
        error(-32015) if params[1]["maxSupportedTransactionVersion"] < 3 else block(params[0])
    )
    assert followed.outcomes(101, 102) == {101: SlotOutcome.READ, 102: SlotOutcome.READ}


def test_block_of_a_version_the_node_keeps_back_is_missing(node: Node, followed: Followed) -> None:
    node.default["getBlock"] = lambda params: (
        error(-32015) if params[0] == 101 else block(params[0])
    )
    first, second = followed.slots(101, 102)
    assert (first.outcome, "-32015" in first.reason, second.outcome) == (
        SlotOutcome.MISSING,
        True,
        SlotOutcome.READ,
    )


def test_slots_that_a_node_jumped_over_are_a_gap(node: Node, followed: Followed) -> None:
    """A node restored from a snapshot reports slots it never had as skipped."""
    node.default["getSlot"] = lambda _params: {"result": 5000}
    node.default["getBlock"] = lambda params: (
        error(-32007) if 1000 < params[0] < 1200 else block(params[0])
    )
    blocks = followed.slots(1000, 1201)
    (gap,) = (each for each in blocks if each.outcome is SlotOutcome.MISSING)
    assert (gap.slot, gap.last) == (1001, 1199)
    assert "slot 1200 follows on 1199" in gap.reason


def chain(node: Node, *, skipped: set[int], denied: list[int], late: list[int]) -> None:
    """Give out a chain; each slot in `denied` is reported as skipped once per occurrence."""

    def answer(params: list[Any]) -> Reply:
        slot = params[0]
        if slot in skipped or slot in denied:
            if slot in denied:
                denied.remove(slot)
            return error(-32007)
        if slot in late:
            late.remove(slot)
            return error(-32004)
        return block(slot, max(set(range(slot - 100, slot)) - skipped))

    node.default |= {"getBlock": answer, "getSlot": lambda _params: {"result": 5000}}


@pytest.mark.parametrize(
    ("late", "last"),
    [([], 1004), ([], 1008), ([1003] * 2, 1004), ([1003] * 2, 1008), ([1005] * 2, 1008)],
)
def test_slots_wrongly_reported_as_skipped_are_read_once_the_chain_goes_through_them(
    node: Node, followed: Followed, late: list[int], last: int
) -> None:
    chain(node, skipped={1001, 1006}, denied=[1002, 1004], late=late)
    blocks = followed.slots(1000, last)
    read = [one.slot for one in blocks if one.outcome is SlotOutcome.READ]
    assert sorted(read) == [slot for slot in range(1000, last + 1) if slot not in {1001, 1006}]
    assert SlotOutcome.MISSING not in {one.outcome for one in blocks}


def test_slot_that_a_node_keeps_reporting_as_skipped_is_a_gap_if_the_chain_goes_through_it(
    node: Node, followed: Followed
) -> None:
    chain(node, skipped={1001}, denied=[1002] * 9, late=[])
    (gap,) = (one for one in followed.slots(1000, 1005) if one.outcome is SlotOutcome.MISSING)
    assert (gap.slot, gap.last) == (1001, 1002)
    assert gap.reason == "the node denies its block: slot 1003 follows on 1002"
    assert len(node.asked) == 8


def test_position_stays_before_skipped_slots_until_a_later_block_is_read(
    node: Node, followed: Followed
) -> None:
    chain(node, skipped={1001, 1002}, denied=[], late=[])
    blocks = followed.slots(1000, 1004)
    assert [(one.slot, one.next_slot) for one in blocks] == [
        (1000, 1001),
        (1001, 1001),
        (1002, 1001),
        (1003, 1004),
        (1004, 1005),
    ]


@pytest.mark.parametrize(("start", "last"), [(1100, 1201), (1000, 1150), (1100, 1190)])
def test_jump_is_told_by_a_run_that_begins_or_ends_in_it(
    node: Node, followed: Followed, start: int, last: int
) -> None:
    node.default["getSlot"] = lambda _params: {"result": 5000}
    node.default["getBlock"] = lambda params: (
        error(-32007) if 1000 < params[0] < 1200 else block(params[0])
    )
    (gap,) = (each for each in followed.slots(start, last) if each.outcome is SlotOutcome.MISSING)
    assert (gap.slot, gap.last) == (max(start, 1001), min(last, 1199))


def test_waiting_for_a_slot_far_ahead_of_the_node_is_told(node: Node, followed: Followed) -> None:
    """The position may belong to another chain, or to a test chain that was reset."""
    node.queued["getSlot"] = [{"result": 105}]
    node.default["getSlot"] = lambda _params: {"result": 900}
    assert followed.outcomes(900, 900) == {900: SlotOutcome.READ}
    assert followed.lines == ["the node's newest slot is 105; waiting for slot 900"]


@pytest.mark.parametrize("result", [-5, True, "105", 1.5, None, []])
def test_newest_slot_that_is_none_is_asked_for_again(
    node: Node, client: RpcClient, result: Any
) -> None:
    node.queued["getSlot"] = [{"result": result}] * 3
    assert client.slot("confirmed") == 105
    node.default["getSlot"] = lambda _params: {"result": result}
    with pytest.raises(RpcError, match="getSlot failed 4 times, last: the answer"):
        client.slot("confirmed")


@pytest.mark.parametrize("status", [400, 429, 500])
def test_answer_about_a_slot_counts_whatever_its_status(
    node: Node, followed: Followed, status: int
) -> None:
    node.queued["getBlock"] = [
        (status, {}, b'{"jsonrpc":"2.0","id":1,"error":{"code":-32007,"message":"skipped"}}')
    ]
    assert followed.outcomes(101, 102) == {101: SlotOutcome.SKIPPED, 102: SlotOutcome.READ}


def test_long_outage_of_the_chain_is_no_gap(node: Node, followed: Followed) -> None:
    node.default["getSlot"] = lambda _params: {"result": 5000}
    node.default["getBlock"] = lambda params: (
        error(-32007)
        if 1000 < params[0] < 1200
        else block(params[0], 1000 if params[0] == 1200 else None)
    )
    assert SlotOutcome.MISSING not in followed.outcomes(1000, 1201).values()


def test_block_larger_than_allowed_is_missing_at_once(node: Node, pauses: list[float]) -> None:
    with closing(
        RpcClient(node.url, sleep=pauses.append, requests_per_second=1e9, max_body_bytes=2000)
    ) as client:
        node.queued["getBlock"] = [{"result": {"parentSlot": 100, "transactions": ["x" * 3000]}}]
        first, second = Followed(client).slots(101, 102)
    assert (first.outcome, "larger than 2000 bytes" in first.reason) == (SlotOutcome.MISSING, True)
    assert (second.outcome, pauses) == (SlotOutcome.READ, [])


def test_codes_that_come_as_text_or_fraction_are_understood(node: Node, followed: Followed) -> None:
    node.queued["getBlock"] = [
        error("-32007"),
        error(-32007.0),
        error("9" * 5000),
        error(-1e300),
        error([]),
        error(True),
    ]
    assert followed.outcomes(101, 103) == {
        101: SlotOutcome.SKIPPED,
        102: SlotOutcome.SKIPPED,
        103: SlotOutcome.READ,
    }


@pytest.mark.slow  # thousands of requests
def test_node_that_fails_for_every_block_loses_none(node: Node, followed: Followed) -> None:
    """No answer beyond the limit for late slots: no slot is skipped, two lines are logged."""
    node.default["getSlot"] = lambda _params: {"result": 9000}
    node.default["getBlock"] = lambda params: (
        (503, {}, b"") if followed.clock.now_s < 300 else block(params[0])
    )
    outcomes = followed.outcomes(1000, 1100)
    assert outcomes == dict.fromkeys(range(1000, 1101), SlotOutcome.READ)
    assert len(followed.lines) == 2
    assert followed.lines[0].startswith("slot 1000: http://127.0.0.1")


def test_outage_is_waited_out_and_told_once(node: Node, followed: Followed) -> None:
    def slot(_params: list[Any]) -> Reply:
        return (
            (502, {}, b"")
            if 0 < followed.clock.now_s < 3600
            else {"result": 105 if followed.clock.now_s == 0 else 106}
        )

    node.default["getSlot"] = slot
    assert list(followed.outcomes(105, 106).values()) == [SlotOutcome.READ] * 2
    began, ended = followed.lines
    assert began.startswith("the node does not answer: http://127.0.0.1")
    assert ended.startswith("the node answers again after 36")


def test_slot_that_alone_fails_is_missing_while_others_go_on(
    node: Node, followed: Followed
) -> None:
    node.default["getBlock"] = lambda params: (
        error(-32603) if params[0] == 102 else block(params[0])
    )
    blocks = followed.slots(101, 104)
    assert [each.slot for each in blocks] == [101, 103, 104, 102]
    assert (blocks[-1].outcome, "no (-32603)" in blocks[-1].reason) == (SlotOutcome.MISSING, True)


def test_retry_after_is_kept(node: Node, client: RpcClient, pauses: list[float]) -> None:
    node.queued["getSlot"] = [
        (429, {"Retry-After": "7"}, b"slow down"),
        (503, {"Retry-After": "99999"}, b""),
    ]
    assert client.slot("confirmed") == 105
    assert pauses == [7, 30]


@pytest.mark.parametrize(
    "reply",
    [
        (429, {}, b""),
        (500, {}, b"oops"),
        HTML,
        NOT_GZIP,
        BROKEN_CHUNK,
        {"error": {"code": -32005, "message": "behind"}},
    ],
)
def test_failures_are_tried_again_with_growing_pauses(
    node: Node, client: RpcClient, pauses: list[float], reply: Reply
) -> None:
    node.queued["getSlot"] = [reply] * 3
    assert client.slot("confirmed") == 105
    assert len(pauses) == 3
    assert all(0.125 * 2**n <= pause <= 0.25 * 2**n for n, pause in enumerate(pauses))


def test_it_gives_up_in_the_end(node: Node, client: RpcClient) -> None:
    node.queued["getSlot"] = [(429, {}, b"")] * 4
    with pytest.raises(
        RpcError, match=r"^http://127.0.0.1:\d+: getSlot failed 4 times, last: HTTP 429$"
    ):
        client.slot("confirmed")


def test_a_refused_key_is_not_tried_again(node: Node, client: RpcClient) -> None:
    node.queued["getSlot"] = [(403, {}, b"forbidden")]
    with pytest.raises(RpcError, match="HTTP 403"):
        client.slot("confirmed")
    assert len(node.asked) == 1


def test_an_answer_too_large(node: Node) -> None:
    client = RpcClient(node.url, max_body_bytes=20, requests_per_second=1e9)
    node.queued["getSlot"] = [{"result": "x" * 100}]
    with pytest.raises(RpcError, match="larger than 20 bytes"):
        client.slot("confirmed")
    client.close()


def test_nobody_there(node: Node) -> None:
    client = RpcClient("http://127.0.0.1:1/", attempts=2, sleep=lambda _s: None)
    with pytest.raises(RpcError, match="failed 2 times"):
        client.slot("confirmed")
    client.close()


def test_requests_keep_their_distance(node: Node) -> None:
    pauses: list[float] = []
    client = RpcClient(node.url, sleep=pauses.append, requests_per_second=2)
    for _ in range(3):
        client.slot("confirmed")
    assert 0.3 < pauses[0] <= 0.5 < pauses[1] <= 1.0
    client.close()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "nonsense",
        "ftp://host/",
        "http://",
        "http://[::1",
        "http://a..b",
        f"http://{'a' * 64}.com",
    ],
)
def test_a_url_that_is_none(url: str) -> None:
    with pytest.raises(BadInputError):
        RpcClient(url)


def test_the_position_survives(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "position.json"
    assert SlotFile(path).read() is None
    SlotFile(path).write(7)
    SlotFile(path).write(8)
    assert SlotFile(path).read() == 8
    assert [each.name for each in path.parent.iterdir()] == ["position.json"]


@pytest.mark.parametrize("text", ["", "{}", "7", '{"next_slot": "x"}', '{"next_slot": -1}'])
def test_a_position_that_is_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "position.json"
    path.write_text(text)
    with pytest.raises(BadInputError, match="not a capture position"):
        SlotFile(path).read()


def test_position_that_cannot_be_written_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CaptureFileError, match="File exists; give this user access"):
        SlotFile(tmp_path / "file" / "position.json").write(7)
