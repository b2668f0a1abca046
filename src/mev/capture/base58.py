"""Base58 encoding, used for instruction data in JSON.

Addresses stay text; only instructions that a detector inspects are decoded.
"""

from functools import lru_cache

_ALPHABET = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_DIGITS = {character: value for value, character in enumerate(_ALPHABET)}


@lru_cache(maxsize=4096)
def decode(text: str) -> bytes:
    """Return the bytes of a base58 string.

    Raises ``ValueError`` on a character outside the alphabet. The cost is quadratic in the length:
    pass instruction data only (at most 1232 bytes on chain).
    """
    number = 0
    try:
        for character in text:
            number = number * 58 + _DIGITS[character]
    except KeyError as error:
        raise ValueError(f"{error.args[0]!r} is not a base58 character") from None
    zeros = len(text) - len(text.lstrip("1"))
    return bytes(zeros) + number.to_bytes((number.bit_length() + 7) // 8, "big")


def encode(raw: bytes) -> str:
    """Return the base58 text of bytes."""
    number = int.from_bytes(raw, "big")
    digits: list[str] = []
    while number:
        number, digit = divmod(number, 58)
        digits.append(_ALPHABET[digit])
    return "1" * (len(raw) - len(raw.lstrip(b"\x00"))) + "".join(reversed(digits))
