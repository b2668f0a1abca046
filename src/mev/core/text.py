"""Text that people see: nothing in it may move a cursor, ring a bell, or turn the direction of what follows."""

from collections.abc import Iterator


def check_printable(text: str) -> str:
    """Return `text`.

    :raises ValueError: when it holds a control character, a line break, a mark of direction or anything else that cannot be seen.
    """
    for place, character in enumerate(text):
        if not character.isprintable():
            raise ValueError(f"character {place + 1}, U+{ord(character):04X}, cannot be printed; letters, digits, signs and spaces can")
    return text


def shown(text: str) -> str:
    """Return `text` with an escape such as ``\\x1b`` in the place of whatever cannot be printed; line breaks stay."""
    return text if text.isprintable() else "".join(_escaped(text))


def counted(number: int, noun: str) -> str:
    """Return a number of things: ``1 part``, ``2 parts``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _escaped(text: str) -> Iterator[str]:
    for character in text:
        yield character if character.isprintable() or character == "\n" else character.encode("unicode_escape").decode()
