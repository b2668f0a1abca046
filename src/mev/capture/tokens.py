"""Decoding of token movements by the two token programs, in every encoding."""

from collections.abc import Mapping
from typing import Any

from mev.capture import base58
from mev.capture.balances import TokenAccount
from mev.capture.model import Flow, Instruction

# Instruction -> (positions of source, mint and destination, offset of the amount); -1: none.
_LAYOUTS: Mapping[int, tuple[int, int, int, int]] = {
    3: (0, -1, 1, 1),  # Transfer
    7: (-1, 0, 1, 1),  # MintTo
    8: (0, 1, -1, 1),  # Burn
    12: (0, 1, 2, 1),  # TransferChecked
    14: (-1, 0, 1, 1),  # MintToChecked
    15: (0, 1, -1, 1),  # BurnChecked
}
_TRANSFER_FEE_EXTENSION = 26
_TRANSFER_CHECKED_WITH_FEE = 1
_PARSED_MOVES = frozenset(
    {
        "transfer",
        "transferChecked",
        "transferCheckedWithFee",
        "mintTo",
        "mintToChecked",
        "burn",
        "burnChecked",
    }
)
_LONGEST_MOVE = 28


def flow(instruction: Instruction, accounts: Mapping[str, TokenAccount]) -> Flow | None:
    """Return the movement of a token instruction, or None.

    A plain transfer does not contain its mint: it is looked up in the balances.
    """
    if instruction.parsed is not None:
        return _parsed(instruction.parsed, accounts)
    # A movement has 9, 10 or 19 bytes; longer text is another instruction.
    if not instruction.data or len(instruction.data) > _LONGEST_MOVE:
        return None
    return _binary(instruction, base58.decode(instruction.data), accounts)


def _binary(
    instruction: Instruction, data: bytes, accounts: Mapping[str, TokenAccount]
) -> Flow | None:
    layout = _LAYOUTS.get(data[0])
    if data[0] == _TRANSFER_FEE_EXTENSION and data[1:2] == bytes([_TRANSFER_CHECKED_WITH_FEE]):
        layout = (0, 1, 2, 2)
    if layout is None:
        return None
    source, mint, destination, amount = layout
    keys = instruction.accounts
    return _flow(
        keys[source] if source >= 0 else "",
        keys[destination] if destination >= 0 else "",
        keys[mint] if mint >= 0 else "",
        int.from_bytes(data[amount : amount + 8], "little"),
        accounts,
    )


def _parsed(parsed: Mapping[str, Any], accounts: Mapping[str, TokenAccount]) -> Flow | None:
    name = parsed.get("type")
    if name not in _PARSED_MOVES:
        return None
    info = parsed["info"]
    amount = info.get("amount") or info["tokenAmount"]["amount"]
    account = info.get("account", "")
    source = info.get("source") or (account if name.startswith("burn") else "")
    destination = info.get("destination") or (account if name.startswith("mint") else "")
    return _flow(source, destination, info.get("mint", ""), int(amount), accounts)


def _flow(
    source: str, destination: str, mint: str, amount: int, accounts: Mapping[str, TokenAccount]
) -> Flow:
    if not mint:
        known = accounts.get(source) or accounts.get(destination)
        mint = known.mint if known else ""
    return Flow(source, destination, mint, amount)
