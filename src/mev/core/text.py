"""Text for display, without control characters or text-direction marks."""

import math
from collections.abc import Iterator

_SOL_DECIMALS = 9
_LAMPORTS_PER_SOL = 10**_SOL_DECIMALS


def check_printable(text: str) -> str:
    """Return `text`.

    :raises ValueError: if it contains a control character, a line break, a direction mark or
        another character that cannot be printed.
    """
    for place, character in enumerate(text):
        if not character.isprintable():
            raise ValueError(
                f"character {place + 1}, U+{ord(character):04X}, cannot be printed; "
                "letters, digits, signs and spaces can"
            )
    return text


def shown(text: str) -> str:
    """Return `text` with characters that cannot be printed as escapes such as ``\\x1b``.

    Line breaks are unchanged.
    """
    return text if text.isprintable() else "".join(_escaped(text))


def counted(number: int, noun: str) -> str:
    """Return a count with its noun: ``1 part``, ``2 parts``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def sol(lamports: float, *, exact: bool = False) -> str:
    """Return an amount in SOL with three decimals; with `exact`, with all decimals.

    Amounts below 1 SOL have up to three significant digits.
    """
    amount = lamports / _LAMPORTS_PER_SOL
    if exact:
        return f"{amount:,.{_SOL_DECIMALS}f}".rstrip("0").rstrip(".") + " SOL"
    decimals = (
        3
        if not amount or abs(amount) >= 1
        else min(_SOL_DECIMALS, 2 - math.floor(math.log10(abs(amount))))
    )
    whole, _, fraction = f"{amount:,.{decimals}f}".partition(".")
    return f"{whole}.{fraction.rstrip('0'):0<3} SOL"


def is_money(name: str) -> bool:
    """Return whether the value called `name` is in lamports; it is displayed in SOL."""
    return name.endswith("_lamports")


def label(name: str) -> str:
    """Return the name of a figure for display, without the unit that :func:`figure` converts."""
    return name.removesuffix("_lamports")


def figure(name: str, value: float) -> str:
    """Return `value` for display: six significant digits, or SOL if `name` is in lamports."""
    return sol(value) if is_money(name) else f"{value:.6g}"


def _escaped(text: str) -> Iterator[str]:
    for character in text:
        yield (
            character
            if character.isprintable() or character == "\n"
            else character.encode("unicode_escape").decode()
        )
