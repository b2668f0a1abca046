"""Decoding of transactions in the JSON encodings ``json``, ``jsonParsed`` and ``base64``.

The order makes whole blocks fast: first the result (a failed transaction costs one lookup), then
vote transactions, then the rest. Shapes are not checked while reading; after a failure,
:mod:`mev.capture.shape` checks the object slowly and names the place.
"""

from base64 import b64decode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from solders.transaction import VersionedTransaction

from mev.capture import base58, shape, venues
from mev.capture.model import U64_MAX, Instruction, Transaction

SHAPE_ERRORS = (KeyError, IndexError, TypeError, ValueError, AttributeError)
# The highest transaction version that can be decoded; requested from nodes.
NEWEST_VERSION = 1
_VERSIONED = 0x80
# The token programs' batch instruction, and the minimum text length of one with a movement.
_BATCH = 255
_SHORTEST_BATCH_TEXT = 16


class Skipped(Enum):
    """Reason for skipping a transaction."""

    FAILED = "failed"
    VOTE = "vote"
    WITHOUT_META = "without_meta"


@dataclass(frozen=True, slots=True)
class UnknownVersion:
    """A transaction with an unsupported version."""

    version: int


def transaction(
    raw: Any, *, slot: int, block_time_s: int, place: str = ""
) -> Transaction | Skipped | UnknownVersion:
    """Decode one transaction of a block or of a ``getTransaction`` answer.

    Raises :class:`~mev.capture.model.BadInputError` with the place inside the object when its shape
    is wrong.
    """
    try:
        return _read(raw, slot, block_time_s)
    except SHAPE_ERRORS as error:
        shape.explain(raw, place, error)


def _read(
    raw: Mapping[str, Any], slot: int, block_time_s: int
) -> Transaction | Skipped | UnknownVersion:
    meta = raw["meta"]
    version = _version(raw)
    if version > NEWEST_VERSION:
        return UnknownVersion(version)
    if meta is None:
        return Skipped.WITHOUT_META
    pre: list[int] = meta["preBalances"]
    post: list[int] = meta["postBalances"]
    _check_lamports(pre, post, meta["fee"])
    body = raw["transaction"]
    if not isinstance(body, dict):
        if meta["err"] is not None:
            return Skipped.FAILED
        body = _from_bytes(_bytes(body))
    message = body["message"]
    keys, signers = _keys(message, meta)
    if len(keys) != len(pre) or not body["signatures"]:
        raise ValueError("balances do not match the accounts")
    if meta["err"] is not None:
        return Skipped.FAILED
    outer = message["instructions"]
    if len(outer) == 1 and _program(outer[0], keys) == venues.VOTE_PROGRAM:
        return Skipped.VOTE
    before, after = meta.get("preTokenBalances"), meta.get("postTokenBalances")
    return Transaction(
        body["signatures"][0],
        slot,
        block_time_s,
        keys,
        signers,
        meta["fee"],
        pre,
        post,
        before or (),
        after or (),
        outer,
        meta.get("innerInstructions") or (),
        meta.get("computeUnitsConsumed") or 0,
        before is not None and after is not None,
    )


def _version(raw: Mapping[str, Any]) -> int:
    """Return the version of a transaction, 0 for legacy ones.

    From version 1 it is in the first byte if the answer does not contain it.
    """
    version = raw.get("version")
    if type(version) is int:
        return version
    body = raw["transaction"]
    if version is not None or isinstance(body, dict):
        return 0
    first = _bytes(body)[0]
    return first ^ _VERSIONED if first & _VERSIONED else 0


def _check_lamports(pre: list[int], post: list[int], fee: int) -> None:
    """Check the lamport lists; a sum detects other types at the speed of reading."""
    before, after = sum(pre), sum(post)
    if type(before) is not int or type(after) is not int or type(fee) is not int:
        raise TypeError("lamports are whole numbers")
    if len(pre) != len(post) or min(pre) < 0 or min(post) < 0 or not 0 <= fee <= U64_MAX:
        raise ValueError("lamports out of range")
    if before > U64_MAX or after > U64_MAX:
        raise ValueError("more lamports than there are")


def _keys(message: Mapping[str, Any], meta: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Return all account keys, looked-up ones last, and the keys of the signers."""
    static = message["accountKeys"]
    if type(static[0]) is str:
        loaded = meta.get("loadedAddresses")
        signers = static[: message["header"]["numRequiredSignatures"]]
        if loaded:
            static = static + loaded["writable"] + loaded["readonly"]
        "".join(static)  # the fastest check that all keys are text
        return static, signers
    return [key["pubkey"] for key in static], [key["pubkey"] for key in static if key["signer"]]


def _program(instruction: Mapping[str, Any], keys: Sequence[str]) -> str:
    index = instruction.get("programIdIndex")
    if index is None:
        index = keys.index(instruction["programId"])
    return keys[index]


def _bytes(encoded: Any) -> bytes:
    """Return the bytes of a ``base64`` or ``base58`` transaction."""
    text, encoding = (encoded, "base58") if isinstance(encoded, str) else encoded
    return b64decode(text, validate=True) if encoding == "base64" else base58.decode(text)


def _from_bytes(raw: bytes) -> dict[str, Any]:
    """Return a transaction in the shape of the encoding ``json``."""
    parsed = VersionedTransaction.from_bytes(raw)
    message = parsed.message
    return {
        "signatures": [str(signature) for signature in parsed.signatures],
        "message": {
            "accountKeys": [str(key) for key in message.account_keys],
            "header": {"numRequiredSignatures": message.header.num_required_signatures},
            "instructions": [
                {
                    "programIdIndex": each.program_id_index,
                    "accounts": list(each.accounts),
                    "data": base58.encode(each.data),
                }
                for each in message.instructions
            ],
        },
    }


def instructions(tx: Transaction) -> list[Instruction]:
    """Return all instructions of a transaction in order of execution, each with its depth."""
    inner: dict[int, Sequence[Mapping[str, Any]]] = {
        group["index"]: group["instructions"] for group in tx.inner
    }
    return list(_flatten(tx, inner))


def _batch(instruction: Instruction) -> Sequence[Instruction]:
    """Return the token instructions of a batch, or the instruction itself.

    Each consists of two bytes (number of accounts, number of data bytes) and its data.
    """
    if instruction.parsed is not None:
        return _parsed_batch(instruction)
    if len(instruction.data) < _SHORTEST_BATCH_TEXT:
        return (instruction,)
    data = base58.decode(instruction.data)
    if data[0] != _BATCH:
        return (instruction,)
    found, at, account = [], 1, 0
    while at + 2 <= len(data):
        accounts, size = data[at], data[at + 1]
        keys = instruction.accounts[account : account + accounts]
        text = base58.encode(data[at + 2 : at + 2 + size])
        found.append(Instruction(instruction.program, keys, text, None, instruction.height))
        at, account = at + 2 + size, account + accounts
    return found if at == len(data) and account <= len(instruction.accounts) else (instruction,)


def _parsed_batch(instruction: Instruction) -> Sequence[Instruction]:
    parsed = instruction.parsed or {}
    if parsed.get("type") != "batch":
        return (instruction,)
    return [
        Instruction(instruction.program, (), "", each, instruction.height)
        for each in parsed["info"]["instructions"]
    ]


def _flatten(
    tx: Transaction, inner: Mapping[int, Sequence[Mapping[str, Any]]]
) -> Iterator[Instruction]:
    for index, raw in enumerate(tx.outer):
        yield from expanded(_instruction(raw, tx.keys, 1))
        for nested in inner.get(index, ()):
            yield from expanded(_instruction(nested, tx.keys, nested.get("stackHeight") or 0))


def expanded(instruction: Instruction) -> Sequence[Instruction]:
    """Return the instruction, or the instructions of a token program's batch."""
    return _batch(instruction) if instruction.program in venues.TOKEN_PROGRAMS else (instruction,)


def _instruction(raw: Mapping[str, Any], keys: Sequence[str], height: int) -> Instruction:
    index = raw.get("programIdIndex")
    if index is not None:
        accounts = raw["accounts"]
        # A negative index would count from the end.
        if index < 0 or (accounts and min(accounts) < 0):
            raise IndexError("negative account index")
        return Instruction(
            keys[index], [keys[each] for each in accounts], raw["data"], None, height
        )
    parsed = raw.get("parsed")
    return Instruction(
        raw["programId"],
        raw.get("accounts") or (),
        raw.get("data") or "",
        parsed if isinstance(parsed, dict) else None,
        height,
    )
