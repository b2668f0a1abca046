"""Decoding: the encodings agree, skips are cheap, and any damage is named or survived."""

import copy
from base64 import b64encode
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from solders.hash import Hash
from solders.instruction import AccountMeta, Instruction
from solders.message import MessageV1
from solders.pubkey import Pubkey
from solders.signature import Signature
from solders.transaction import VersionedTransaction

from mev.capture import base58, decode, shape, venues
from mev.capture.model import BadInputError, Transaction
from tests.unit.capture import chain
from tests.unit.capture.capturing import Run
from tests.unit.capture.chain import Tx, pda, wallet


def read(raw: Any) -> Transaction | decode.Skipped | decode.UnknownVersion:
    return decode.transaction(raw, slot=1, block_time_s=2)


def test_the_encodings_give_the_same_transaction() -> None:
    tx = chain.arbitrage()
    parsed = [read(tx.json(encoding)) for encoding in ("json", "base64", "jsonParsed")]
    views = []
    for each in parsed:
        assert isinstance(each, Transaction)
        views.append(
            (
                each.signature,
                list(each.keys),
                list(each.signers),
                [(i.program, i.height) for i in decode.instructions(each)],
            )
        )
    assert views[0] == views[1] == views[2]


def test_version_1_is_read_in_both_encodings() -> None:
    raw = chain.arbitrage().json()
    signer = Pubkey.from_string(wallet("bot"))
    call = Instruction(
        Pubkey.from_string(chain.MEMO),
        b"hello",
        [AccountMeta(signer, is_signer=True, is_writable=True)],
    )
    message = MessageV1.try_compile(signer, [call], Hash.default())
    wire = bytes(VersionedTransaction.populate(message, [Signature.default()]))
    count = len(message.account_keys)
    raw["meta"] |= {
        "preBalances": [10] * count,
        "postBalances": [5] * count,
        "innerInstructions": [],
        "preTokenBalances": [],
        "postTokenBalances": [],
    }
    encoded = read({**raw, "version": 1, "transaction": [b64encode(wire).decode(), "base64"]})
    assert isinstance(encoded, Transaction)
    (instruction,) = decode.instructions(encoded)
    assert (list(encoded.signers), instruction.program, base58.decode(instruction.data)) == (
        [str(signer)],
        chain.MEMO,
        b"hello",
    )
    body = {
        "signatures": [encoded.signature],
        "message": {
            "header": {"numRequiredSignatures": 1},
            "accountKeys": list(encoded.keys),
            "transactionConfig": {"computeUnitLimit": 200_000},
            "instructions": [{**each, "stackHeight": 1} for each in encoded.outer],
        },
    }
    assert decode.instructions(
        cast("Transaction", read({**raw, "version": 1, "transaction": body}))
    ) == [instruction]


@pytest.mark.parametrize("version", [2, 127])
def test_version_that_is_not_known_is_recognised_in_every_encoding(version: int) -> None:
    raw = chain.arbitrage().json()
    wire = [b64encode(bytes([0x80 | version]) + bytes(40)).decode(), "base64"]
    assert read({**raw, "version": version}) == decode.UnknownVersion(version)
    assert read({**raw, "version": version, "transaction": wire}) == decode.UnknownVersion(version)
    del raw["version"]
    assert read({**raw, "transaction": wire}) == decode.UnknownVersion(version)


def test_looked_up_accounts_follow_the_static_ones() -> None:
    raw = chain.arbitrage().json()
    keys = raw["transaction"]["message"]["accountKeys"]
    raw["meta"]["loadedAddresses"] = {"writable": keys[-4:-2], "readonly": keys[-2:]}
    raw["transaction"]["message"]["accountKeys"] = keys[:-4]
    tx = read(raw)
    assert isinstance(tx, Transaction)
    assert list(tx.keys) == keys


def test_votes_failures_and_missing_metadata_are_skipped() -> None:
    vote = Tx([wallet("validator")])
    vote.call(venues.VOTE_PROGRAM, [pda("vote account")], b"\x0c")
    failed = chain.arbitrage()
    failed.err = "AccountNotFound"
    assert read(vote.json()) is decode.Skipped.VOTE
    assert read(vote.json("base64")) is decode.Skipped.VOTE
    assert read(failed.json()) is decode.Skipped.FAILED
    assert read({**chain.arbitrage().json(), "meta": None}) is decode.Skipped.WITHOUT_META


Path = tuple[str | int, ...]
WRONG: list[tuple[Path, Any, str]] = [
    (("meta",), 7, "meta"),
    (("meta", "fee"), -1, "meta.fee"),
    (("meta", "fee"), 2**64, "meta.fee"),
    (("meta", "fee"), "5000", "meta.fee"),
    (("meta", "preBalances"), "none", "meta.preBalances"),
    (("meta", "preBalances", 1), -5, "meta.preBalances[1]"),
    (("meta", "preBalances", 1), 1.5, "meta.preBalances[1]"),
    (("meta", "postBalances", 0), 1e30, "meta.postBalances[0]"),
    (("meta", "postBalances"), [1], "meta.postBalances"),
    (("meta", "preTokenBalances", 0, "accountIndex"), 999, "meta.preTokenBalances[0].accountIndex"),
    (
        ("meta", "postTokenBalances", 1, "uiTokenAmount", "amount"),
        "99999999999999999999999",
        "meta.postTokenBalances[1].uiTokenAmount.amount",
    ),
    *(
        (
            ("meta", "postTokenBalances", 1, "uiTokenAmount", "amount"),
            text,
            "meta.postTokenBalances[1].uiTokenAmount.amount",
        )
        for text in ("1e3", "\u0661\u0662", "1_000", " 1", "+1", "", 1, 1.0, None)
    ),
    (
        ("meta", "innerInstructions", 0, "instructions", 0, "programIdIndex"),
        500,
        "meta.innerInstructions[0].instructions[0].programIdIndex",
    ),
    (
        ("meta", "innerInstructions", 0, "instructions", 0, "programIdIndex"),
        -1,
        "meta.innerInstructions[0].instructions[0].programIdIndex",
    ),
    (
        ("meta", "innerInstructions", 0, "instructions", 0, "accounts", 0),
        -1,
        "meta.innerInstructions[0].instructions[0].accounts[0]",
    ),
    (
        ("meta", "innerInstructions", 0, "instructions", 0, "data"),
        "0OIl",
        "meta.innerInstructions[0].instructions[0].data",
    ),
    (("transaction",), 7, "transaction"),
    (("transaction",), ["????", "base64"], "transaction[0]"),
    (("transaction",), ["AAAA", "base65"], "transaction[1]"),
    (("transaction", "signatures"), [], "transaction.signatures"),
    (("transaction", "message", "accountKeys"), [], "transaction.message.accountKeys"),
    (("transaction", "message", "accountKeys", 2), 5, "transaction.message.accountKeys[2]"),
    (("transaction", "message", "header"), {}, "transaction.message.header.numRequiredSignatures"),
    (
        ("transaction", "message", "instructions", 0, "programIdIndex"),
        256,
        "transaction.message.instructions[0].programIdIndex",
    ),
]


@pytest.mark.parametrize(("path", "value", "place"), WRONG)
def test_the_wrong_place_is_named(path: Path, value: Any, place: str) -> None:
    raw = chain.arbitrage().single()
    at: Any = raw
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = value
    run = Run({"slot": 5, "transactions": [chain.arbitrage("other").json(), raw]})
    assert run.places == [f"transactions[1].{place}"]
    assert len(run.events) == 1


@pytest.mark.parametrize(
    "path",
    [("meta",), ("meta", "fee"), ("meta", "err"), ("transaction", "message", "instructions")],
)
def test_a_missing_member_is_named(path: tuple[str, ...]) -> None:
    raw = chain.arbitrage().single()
    at: Any = raw
    for step in path[:-1]:
        at = at[step]
    del at[path[-1]]
    assert Run({"slot": 5, "transactions": [raw]}).places == ["transactions[0]." + ".".join(path)]


@pytest.mark.parametrize(
    ("document", "place"),
    [
        (7, ""),
        ({}, ""),
        ({"transactions": {}}, "transactions"),
        ({"slot": -1, "transactions": []}, "slot"),
        ({"parentSlot": 2**64, "transactions": []}, "parentSlot"),
        ({"slot": 1, "blockTime": "now", "transactions": []}, "blockTime"),
        ({"slot": 1, "transactions": ["5Uu5J1Px"]}, "transactions[0]"),
        ({"jsonrpc": "2.0", "result": 5}, "result"),
        ({"jsonrpc": "2.0", "error": {"code": -32602, "message": "bad"}}, "error"),
        ([{"slot": 1, "transactions": []}, 5], "[1]"),
    ],
)
def test_a_document_of_another_kind(document: Any, place: str) -> None:
    assert Run(document).places == [place]


def test_envelopes_and_lists_are_opened() -> None:
    answers = [
        {"jsonrpc": "2.0", "id": 1, "result": chain.arbitrage(name).single()} for name in ("a", "b")
    ]
    run = Run(
        [
            *answers,
            {"jsonrpc": "2.0", "result": None},
            {"result": chain.block(chain.arbitrage("c"))},
        ]
    )
    assert (len(run.events), run.errors) == (3, [])


@pytest.mark.parametrize(
    ("members", "hint", "slot"),
    [
        ({"slot": 90, "parentSlot": 80}, 85, 90),
        ({"parentSlot": 80}, None, 81),
        ({"parentSlot": 80}, 83, 83),
        ({"parentSlot": 80}, 20240314, 81),
        ({}, None, 0),
    ],
)
def test_a_blocks_slot(members: dict[str, int], hint: int | None, slot: int) -> None:
    run = Run()
    run.capture.document({**members, "transactions": [chain.arbitrage().json()]}, slot=hint)
    run.capture.close()
    assert run.events[0].slot == slot


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**65), 2**65)
    | st.floats(allow_nan=False)
    | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)


def places(value: Any, path: Path = ()) -> list[Path]:
    """Return the path to everything inside a JSON value."""
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    found = [path] if path else []
    for step, inner in items:
        found += places(inner, (*path, step))
    return found


WHOLE = {
    encoding: chain.arbitrage().single(encoding) for encoding in ("json", "jsonParsed", "base64")
}


@given(st.data())
def test_any_damage_is_reported_or_harmless(data: st.DataObject) -> None:
    raw = copy.deepcopy(WHOLE[data.draw(st.sampled_from(sorted(WHOLE)))])
    path = data.draw(st.sampled_from(places(raw)))
    at: Any = raw
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = data.draw(JSON)
    run = Run([raw, chain.arbitrage("whole").single()])
    assert wallet("whole") in [event.signer for event in run.events]
    assert run.summary.errors == len(run.errors) <= 1


@given(JSON)
def test_any_document_is_answered(value: Any) -> None:
    Run(value)


@given(st.binary(max_size=80))
def test_base58_round_trip(raw: bytes) -> None:
    assert base58.decode(base58.encode(raw)) == raw


@given(st.binary(min_size=32, max_size=32))
def test_base58_agrees_with_the_chains_own(raw: bytes) -> None:
    assert base58.encode(raw) == str(Pubkey.from_bytes(raw))


def test_base58_names_the_wrong_character() -> None:
    with pytest.raises(ValueError, match="'0'"):
        base58.decode("abc0")


def test_an_error_names_its_place() -> None:
    error = BadInputError("missing", place="meta.fee").within("file: line 3")
    assert (error.detail, error.code) == ("file: line 3: meta.fee: missing", "capture_input")
    assert shape.kind(None) == "null"


def test_every_listed_program_is_an_address() -> None:
    for program in venues.KNOWN_PROGRAMS:
        Pubkey.from_string(program)


def test_every_listed_program_is_in_the_docs() -> None:
    text = chain.DOCS.joinpath("venues.md").read_text()
    programs = {*venues.VENUES, *venues.AGGREGATORS, *venues.LENDERS}
    assert sorted(program for program in programs if f"| `{program}` |" not in text) == []
    assert (
        sorted(venue.name for venue in venues.VENUES.values() if f"| {venue.name} |" not in text)
        == []
    )
