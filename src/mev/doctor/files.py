"""Readers of files below `/proc` and `/sys`; a missing or malformed file is never an error."""

from pathlib import Path

_MOST_BYTES = 1 << 20
_MOST_CPUS = 1 << 16


def read(path: Path) -> str | None:
    """Return the text of a file without surrounding white space, None if it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(_MOST_BYTES).decode(errors="replace").strip()
    except (OSError, ValueError):
        return None


def read_int(path: Path) -> int | None:
    """Return the whole number in a file, None if there is none."""
    return to_int(read(path) or "")


def to_int(text: str) -> int | None:
    """Return the whole number that `text` is, None if it is not one."""
    try:
        return int(text)
    except ValueError:
        return None


def children(folder: Path, pattern: str) -> list[Path]:
    """Return the entries of a folder that match `pattern`, sorted; none if it cannot be read."""
    try:
        return sorted(folder.glob(pattern))
    except OSError:
        return []


def numbered(folder: Path, prefix: str) -> list[Path]:
    """Return the entries of a folder called `prefix` and a number, by number."""
    found = [
        (number, path)
        for path in children(folder, f"{prefix}*")
        if (digits := path.name.removeprefix(prefix)).isascii()
        and digits.isdigit()
        and (number := to_int(digits)) is not None
    ]
    return [path for _, path in sorted(found)]


def parse_cpus(text: str) -> frozenset[int] | None:
    """Return the numbers of a kernel list such as ``0-3,8``, None if it is malformed."""
    cpus = set[int]()
    for part in filter(None, (part.strip() for part in text.split(","))):
        first, dash, last = part.partition("-")
        low, high = to_int(first), to_int(last if dash else first)
        if low is None or high is None or not 0 <= low <= high < _MOST_CPUS:
            return None
        cpus.update(range(low, high + 1))
    return frozenset(cpus)


def show_cpus(cpus: frozenset[int]) -> str:
    """Return a kernel list such as ``0-3,8``."""
    ranges: list[tuple[int, int]] = []
    for cpu in sorted(cpus):
        if ranges and cpu == ranges[-1][1] + 1:
            ranges[-1] = (ranges[-1][0], cpu)
        else:
            ranges.append((cpu, cpu))
    return ",".join(f"{low}" if low == high else f"{low}-{high}" for low, high in ranges)


def parse_fields(text: str) -> dict[str, str]:
    """Return the values of lines ``name: value``; the first of several with one name counts."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        name, colon, value = line.partition(":")
        if colon:
            fields.setdefault(name.strip(), value.strip())
    return fields


def parse_choice(text: str) -> str | None:
    """Return the word in brackets of ``always [madvise] never``, None if there is none."""
    chosen = [word[1:-1] for word in text.split() if word.startswith("[") and word.endswith("]")]
    return chosen[0] if len(chosen) == 1 and chosen[0] else None


def online_cpus(root: Path) -> frozenset[int] | None:
    """Return the online processors, None if they are unknown."""
    return parse_cpus(read(root / "sys/devices/system/cpu/online") or "") or None
