"""Undo the JSON encodings ``json``, ``jsonParsed`` and ``base64`` of one transaction.

The order of work is what makes whole blocks cheap: the outcome first (a failed transaction costs one look-up), then
whether it is a vote, and only then the rest. Shapes are trusted while reading; when reading fails,
:mod:`mev.capture.shape` goes over the same object slowly and names the place.
"""

from base64 import b64decode
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from typing import Any

from solders.transaction import VersionedTransaction

from mev.capture import base58, shape, venues
from mev.capture.model import U64_MAX, Instruction, Transaction

SHAPE_ERRORS = (KeyError, IndexError, TypeError, ValueError, AttributeError)


class Skipped(Enum):
    """Why a transaction was not examined."""

    FAILED = "failed"
    VOTE = "vote"
    WITHOUT_META = "without_meta"


def transaction(raw: Any, *, slot: int, block_time_s: int, place: str = "") -> Transaction | Skipped:
    """Read one transaction of a block or of a ``getTransaction`` answer.

    Raises :class:`~mev.capture.model.BadInputError` with the place inside the object when its shape is wrong.
    """
    try:
        return _read(raw, slot, block_time_s)
    except SHAPE_ERRORS as error:
        shape.explain(raw, place, error)


def _read(raw: Mapping[str, Any], slot: int, block_time_s: int) -> Transaction | Skipped:
    meta = raw["meta"]
    if meta is None:
        return Skipped.WITHOUT_META
    pre: list[int] = meta["preBalances"]
    post: list[int] = meta["postBalances"]
    _check_lamports(pre, post, meta["fee"])
    body = raw["transaction"]
    if not isinstance(body, dict):
        if meta["err"] is not None:
            return Skipped.FAILED
        body = _from_bytes(body)
    message = body["message"]
    keys, signers = _keys(message, meta)
    if len(keys) != len(pre) or not body["signatures"]:
        raise ValueError("balances do not match the accounts")
    if meta["err"] is not None:
        return Skipped.FAILED
    outer = message["instructions"]
    if len(outer) == 1 and _program(outer[0], keys) == venues.VOTE_PROGRAM:
        return Skipped.VOTE
    return Transaction(
        body["signatures"][0],
        slot,
        block_time_s,
        keys,
        signers,
        meta["fee"],
        pre,
        post,
        meta.get("preTokenBalances") or (),
        meta.get("postTokenBalances") or (),
        outer,
        meta.get("innerInstructions") or (),
        meta.get("computeUnitsConsumed") or 0,
    )


def _check_lamports(pre: list[int], post: list[int], fee: int) -> None:
    """Refuse what is not a list of lamport amounts: sums find a float or a text as fast as the lists can be read."""
    before, after = sum(pre), sum(post)
    if type(before) is not int or type(after) is not int or type(fee) is not int:
        raise TypeError("lamports are whole numbers")
    if len(pre) != len(post) or min(pre) < 0 or min(post) < 0 or not 0 <= fee <= U64_MAX:
        raise ValueError("lamports out of range")
    if before > U64_MAX or after > U64_MAX:
        raise ValueError("more lamports than there are")


def _keys(message: Mapping[str, Any], meta: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Return all account keys, looked-up ones last, and those that signed."""
    static = message["accountKeys"]
    if type(static[0]) is str:
        loaded = meta.get("loadedAddresses")
        signers = static[: message["header"]["numRequiredSignatures"]]
        if loaded:
            static = static + loaded["writable"] + loaded["readonly"]
        "".join(static)  # the fastest way to find a key that is no text
        return static, signers
    return [key["pubkey"] for key in static], [key["pubkey"] for key in static if key["signer"]]


def _program(instruction: Mapping[str, Any], keys: Sequence[str]) -> str:
    index = instruction.get("programIdIndex")
    if index is None:
        index = keys.index(instruction["programId"])
    return keys[index]


def _from_bytes(encoded: Any) -> dict[str, Any]:
    """Return a ``base64`` or ``base58`` transaction in the shape that encoding ``json`` gives."""
    text, encoding = (encoded, "base58") if isinstance(encoded, str) else encoded
    raw = b64decode(text, validate=True) if encoding == "base64" else base58.decode(text)
    parsed = VersionedTransaction.from_bytes(raw)
    message = parsed.message
    return {
        "signatures": [str(signature) for signature in parsed.signatures],
        "message": {
            "accountKeys": [str(key) for key in message.account_keys],
            "header": {"numRequiredSignatures": message.header.num_required_signatures},
            "instructions": [
                {"programIdIndex": each.program_id_index, "accounts": list(each.accounts), "data": base58.encode(each.data)}
                for each in message.instructions
            ],
        },
    }


def instructions(tx: Transaction) -> list[Instruction]:
    """Return all instructions of a transaction in order of execution, each with its depth."""
    inner: dict[int, Sequence[Mapping[str, Any]]] = {group["index"]: group["instructions"] for group in tx.inner}
    return list(_flatten(tx, inner))


def _flatten(tx: Transaction, inner: Mapping[int, Sequence[Mapping[str, Any]]]) -> Iterator[Instruction]:
    for index, raw in enumerate(tx.outer):
        yield _instruction(raw, tx.keys, 1)
        for nested in inner.get(index, ()):
            yield _instruction(nested, tx.keys, nested.get("stackHeight") or 0)


def _instruction(raw: Mapping[str, Any], keys: Sequence[str], height: int) -> Instruction:
    index = raw.get("programIdIndex")
    if index is not None:
        accounts = raw["accounts"]
        # Python would count a negative index from the end.
        if index < 0 or (accounts and min(accounts) < 0):
            raise IndexError("negative account index")
        return Instruction(keys[index], [keys[each] for each in accounts], raw["data"], None, height)
    parsed = raw.get("parsed")
    return Instruction(
        raw["programId"], raw.get("accounts") or (), raw.get("data") or "", parsed if isinstance(parsed, dict) else None, height
    )
