"""Token instructions, as bytes and as the node parses them."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mev.capture import base58, decode, tokens
from mev.capture.balances import TokenAccount
from mev.capture.model import Flow, Instruction
from tests.unit.capture.chain import TOKEN

ACCOUNTS = {"from": TokenAccount("mint", "owner", -7), "to": TokenAccount("mint", "other", 7)}
AMOUNT = (7).to_bytes(8, "little")
MOVE, MINT, BURN = (
    Flow("from", "to", "mint", 7),
    Flow("", "to", "mint", 7),
    Flow("from", "", "mint", 7),
)


@pytest.mark.parametrize(
    ("data", "accounts", "flow"),
    [
        (b"\x03" + AMOUNT, ["from", "to", "signer"], MOVE),
        (b"\x0c" + AMOUNT + b"\x06", ["from", "mint", "to", "signer"], MOVE),
        (b"\x1a\x01" + AMOUNT + b"\x06" + bytes(8), ["from", "mint", "to", "signer"], MOVE),
        (b"\x07" + AMOUNT, ["mint", "to", "signer"], MINT),
        (b"\x0e" + AMOUNT + b"\x06", ["mint", "to", "signer"], MINT),
        (b"\x08" + AMOUNT, ["from", "mint", "signer"], BURN),
        (b"\x0f" + AMOUNT + b"\x06", ["from", "mint", "signer"], BURN),
        (b"\x09", ["from", "to", "signer"], None),
        (b"\x1a\x02", ["mint", "to", "signer"], None),
        (b"", [], None),
    ],
)
def test_bytes(data: bytes, accounts: list[str], flow: Flow | None) -> None:
    assert tokens.flow(Instruction(TOKEN, accounts, base58.encode(data), None, 2), ACCOUNTS) == flow


@pytest.mark.parametrize(
    ("name", "info", "flow"),
    [
        ("transfer", {"source": "from", "destination": "to", "amount": "7"}, MOVE),
        (
            "transferChecked",
            {"source": "from", "destination": "to", "mint": "mint", "tokenAmount": {"amount": "7"}},
            MOVE,
        ),
        ("mintTo", {"mint": "mint", "account": "to", "amount": "7"}, MINT),
        ("mintToChecked", {"mint": "mint", "account": "to", "tokenAmount": {"amount": "7"}}, MINT),
        ("burn", {"mint": "mint", "account": "from", "amount": "7"}, BURN),
        ("closeAccount", {"account": "from"}, None),
    ],
)
def test_parsed(name: str, info: dict[str, Any], flow: Flow | None) -> None:
    assert (
        tokens.flow(Instruction(TOKEN, [], "", {"type": name, "info": info}, 2), ACCOUNTS) == flow
    )


def test_a_mint_nobody_names_is_left_open() -> None:
    assert tokens.flow(
        Instruction(TOKEN, ["x", "y", "z"], base58.encode(b"\x03" + AMOUNT), None, 2), {}
    ) == Flow("x", "y", "", 7)


PARTS = st.lists(
    st.tuples(st.integers(0, 5), st.binary(min_size=1, max_size=30)), min_size=1, max_size=6
)


@given(PARTS, st.integers(0, 1))
def test_batch_is_its_parts(parts: list[tuple[int, bytes]], cut: int) -> None:
    """A batch yields accounts and data of each part in order; a truncated one stays whole."""
    data = b"\xff" + b"".join(bytes([accounts, len(part)]) + part for accounts, part in parts)
    keys = [f"key {index}" for index in range(sum(accounts for accounts, _ in parts))]
    whole = Instruction(TOKEN, keys, base58.encode(data[: len(data) - cut]), None, 2)
    found = decode.expanded(whole)
    if cut or len(whole.data) < 16:
        assert list(found) == [whole]
        return
    assert [base58.decode(each.data) for each in found] == [part for _, part in parts]
    assert [key for each in found for key in each.accounts] == keys
    assert {each.height for each in found} == {2}


@given(st.binary(max_size=80))
def test_any_batch_is_answered(data: bytes) -> None:
    assert decode.expanded(
        Instruction(TOKEN, ["from", "to"], base58.encode(b"\xff" + data), None, 2)
    )


@given(st.binary(max_size=40))
def test_any_bytes_are_answered(data: bytes) -> None:
    tokens.flow(
        Instruction(TOKEN, ["from", "mint", "to", "signer"], base58.encode(data), None, 2), ACCOUNTS
    )
