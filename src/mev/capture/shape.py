"""Validation of a transaction's JSON, to locate an error.

It runs only after reading has failed, so it may be slow; it checks what the reader reads, in the
same order, and raises at the first error.
"""

from base64 import b64decode
from collections.abc import Mapping
from typing import Any, NoReturn

from mev.capture import base58
from mev.capture.model import U64_MAX, BadInputError

_NAMES = {
    dict: "an object",
    list: "a list",
    str: "a text",
    int: "a whole number",
    bool: "true or false",
    float: "a fraction",
}


def explain(raw: Any, place: str, cause: Exception) -> NoReturn:
    """Raise the error with the first wrong place of an unreadable transaction."""
    _transaction(raw, place)
    raise BadInputError(f"not a transaction: {cause}", place=place) from cause


def kind(value: Any) -> str:
    """Return the name of a JSON value's type for messages."""
    return "null" if value is None else _NAMES.get(type(value), type(value).__name__)


def typed(
    parent: Any, key: str, kinds: tuple[type, ...], place: str, *, required: bool = True
) -> Any:
    """Return a member of an object after checking its type."""
    at = f"{place}.{key}" if place else key
    if not isinstance(parent, Mapping):
        raise BadInputError(f"expected an object, found {kind(parent)}", place=place)
    if key not in parent:
        if required:
            raise BadInputError("missing", place=at)
        return None
    value = parent[key]
    if value is None and not required:
        return None
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        expected = " or ".join(_NAMES.get(each, each.__name__) for each in kinds)
        raise BadInputError(f"expected {expected}, found {kind(value)}", place=at)
    return value


def number(value: Any, place: str, *, most: int = U64_MAX) -> int:
    """Return a value after checking that it is an integer from 0 to ``most``."""
    # JSON integers above 64 bits arrive as floats.
    is_huge = isinstance(value, float) and value > U64_MAX
    if not is_huge and (not isinstance(value, int) or isinstance(value, bool)):
        raise BadInputError(f"expected a whole number, found {kind(value)}", place=place)
    if not 0 <= value <= most:
        raise BadInputError(f"{value} is out of range, 0 to {most}", place=place)
    return int(value)


def _transaction(raw: Any, place: str) -> None:
    if not isinstance(raw, Mapping):
        raise BadInputError(f"expected a transaction object, found {kind(raw)}", place=place)
    prefix = f"{place}." if place else ""
    meta = typed(raw, "meta", (dict,), place)
    body = typed(raw, "transaction", (dict, list, str), place)
    keys = (
        _body(body, f"{prefix}transaction")
        if isinstance(body, Mapping)
        else _encoded(body, f"{prefix}transaction")
    )
    total = _meta(meta, keys, f"{prefix}meta")
    if isinstance(body, Mapping):
        _instructions(
            body["message"]["instructions"], total, f"{prefix}transaction.message.instructions"
        )
    for index, group in enumerate(meta.get("innerInstructions") or ()):
        at = f"{prefix}meta.innerInstructions[{index}]"
        number(typed(group, "index", (int, float), at), f"{at}.index", most=255)
        _instructions(typed(group, "instructions", (list,), at), total, f"{at}.instructions")


def _instructions(raws: Any, keys: int, place: str) -> None:
    for index, raw in enumerate(raws):
        _instruction(raw, keys, f"{place}[{index}]")


def _encoded(body: Any, place: str) -> int | None:
    if isinstance(body, list) and (
        len(body) != 2 or not all(isinstance(part, str) for part in body)
    ):
        raise BadInputError("expected [text, encoding]", place=place)
    if isinstance(body, list):
        if body[1] not in ("base64", "base58"):
            raise BadInputError(f"unknown encoding {body[1]!r}", place=f"{place}[1]")
        try:
            b64decode(body[0], validate=body[1] == "base64")
        except ValueError as error:
            raise BadInputError(f"not base64: {error}", place=f"{place}[0]") from None
    return None


def _body(body: Mapping[str, Any], place: str) -> int:
    signatures = typed(body, "signatures", (list,), place)
    if not signatures or not isinstance(signatures[0], str):
        raise BadInputError("expected at least one signature", place=f"{place}.signatures")
    message = typed(body, "message", (dict,), place)
    at = f"{place}.message"
    keys = typed(message, "accountKeys", (list,), at)
    if not keys:
        raise BadInputError("expected at least one account", place=f"{at}.accountKeys")
    for index, key in enumerate(keys):
        _key(key, f"{at}.accountKeys[{index}]")
    if isinstance(keys[0], str):
        header = typed(message, "header", (dict,), at)
        number(
            header.get("numRequiredSignatures"),
            f"{at}.header.numRequiredSignatures",
            most=len(keys),
        )
    typed(message, "instructions", (list,), at)
    return len(keys)


def _key(key: Any, place: str) -> None:
    if not isinstance(key, str):
        typed(key, "pubkey", (str,), place)
        typed(key, "signer", (bool,), place)


def _meta(meta: Mapping[str, Any], keys: int | None, place: str) -> int:
    if "err" not in meta:
        raise BadInputError("missing", place=f"{place}.err")
    number(typed(meta, "fee", (int, float), place), f"{place}.fee")
    loaded = typed(meta, "loadedAddresses", (dict,), place, required=False) or {}
    for side in ("writable", "readonly") if loaded else ():
        typed(loaded, side, (list,), f"{place}.loadedAddresses")
    lengths = [_lamports(meta, name, place) for name in ("preBalances", "postBalances")]
    if lengths[0] != lengths[1]:
        raise BadInputError(
            f"{lengths[1]} amounts where preBalances has {lengths[0]}",
            place=f"{place}.postBalances",
        )
    if keys is not None and lengths[0] < keys:
        raise BadInputError(
            f"{lengths[0]} amounts for {keys} accounts", place=f"{place}.preBalances"
        )
    for name in ("preTokenBalances", "postTokenBalances"):
        for index, balance in enumerate(typed(meta, name, (list,), place, required=False) or ()):
            _token_balance(balance, lengths[0], f"{place}.{name}[{index}]")
    typed(meta, "innerInstructions", (list,), place, required=False)
    return lengths[0]


def _lamports(meta: Mapping[str, Any], name: str, place: str) -> int:
    amounts = typed(meta, name, (list,), place)
    for index, amount in enumerate(amounts):
        number(amount, f"{place}.{name}[{index}]")
    if sum(amounts) > U64_MAX:
        raise BadInputError("more lamports than there are", place=f"{place}.{name}")
    return len(amounts)


def _token_balance(balance: Any, keys: int, place: str) -> None:
    number(
        typed(balance, "accountIndex", (int, float), place), f"{place}.accountIndex", most=keys - 1
    )
    typed(balance, "mint", (str,), place)
    typed(balance, "owner", (str,), place, required=False)
    amounts = typed(balance, "uiTokenAmount", (dict,), place)
    at = f"{place}.uiTokenAmount"
    number(typed(amounts, "decimals", (int, float), at), f"{at}.decimals", most=255)
    text = typed(amounts, "amount", (str,), at)
    if not (text.isascii() and text.isdigit()):
        raise BadInputError(f"{text!r} is not a whole number", place=f"{at}.amount")
    number(int(text) if len(text) <= 20 else U64_MAX + 1, f"{at}.amount")


def _instruction(raw: Any, keys: int, place: str) -> None:
    if isinstance(raw, Mapping) and "programIdIndex" in raw:
        number(raw["programIdIndex"], f"{place}.programIdIndex", most=keys - 1)
        for index, account in enumerate(typed(raw, "accounts", (list,), place)):
            number(account, f"{place}.accounts[{index}]", most=keys - 1)
        data = typed(raw, "data", (str,), place)
        try:
            base58.decode(data)
        except ValueError as error:
            raise BadInputError(f"not base58: {error}", place=f"{place}.data") from None
    else:
        typed(raw, "programId", (str,), place)
