"""Tables in terminals and in pipes."""

import re
from collections.abc import Sequence
from contextlib import redirect_stdout
from io import StringIO

import pytest

from mev.cli.tables import Id, print_table
from mev.core.text import counted

ONE = "019a0000-0000-7000-8000-000000000001"
SOON, LATER = "019a0000-1111-7a01-8000-000000000001", "019a0000-1111-7a02-8000-000000000002"
MODEL = "2937300909321f" + "0" * 50


class Terminal(StringIO):
    """A terminal that is 40 columns wide."""

    def isatty(self) -> bool:
        return True


def in_terminal(
    monkeypatch: pytest.MonkeyPatch, columns: Sequence[str], rows: Sequence[Sequence[object]]
) -> list[str]:
    """Return the lines displayed below the header."""
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("TERM", "xterm")
    with redirect_stdout(Terminal()) as seen:
        print_table(columns, rows)
    return seen.getvalue().splitlines()[1:]


def test_a_pipe_gets_everything_on_one_line_with_nothing_behind_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_table(
        ("id", "note", "left"), [(Id(MODEL), "x" * 400, ""), (Id(ONE), "two\nlines", "\x1b[2J")]
    )
    header, first, second = capsys.readouterr().out.splitlines()
    assert header.split() == ["id", "note", "left"]
    assert first == f"{MODEL}  {'x' * 400}"
    assert second == f"{ONE:<64}  {'two' + chr(92) + 'nlines':<400}  \\x1b[2J"


def test_a_terminal_breaks_anything_but_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    row = (Id(ONE), "many words " * 9 + "range_still_changing" * 3, Id(MODEL))
    lines = in_terminal(monkeypatch, ("id", "note", "model"), [row])
    assert max(map(len, lines)) <= 40
    assert lines[0].startswith("019a0000-0000 ")
    assert lines[0].endswith(" 293730090932")
    assert "".join(line[15:26].strip() for line in lines).endswith("range_still_changing")


def test_a_terminal_leaves_out_empty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = in_terminal(
        monkeypatch, ("id", "a", "note", "b"), [(Id(ONE), "", "x", ""), (Id(ONE), "", "", "y")]
    )
    assert [line.split() for line in lines] == [[ONE[:13], "x"], [ONE[:13], "y"]]


def test_terminal_too_narrow_for_the_columns_leaves_out_spare_ones_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    columns = ("id", "created_at", "state", "level", "reason")
    rows = [(Id(ONE), "2026-11-29 20:05", "online", "ACTIVE", "lease lost")]
    monkeypatch.setenv("COLUMNS", "47")
    shown = []
    for spare in (("level", "created_at"), ("created_at", "level", "reason")):
        monkeypatch.setenv("TERM", "xterm")
        with redirect_stdout(Terminal()) as seen:
            print_table(columns, rows, spare=spare)
        shown.append(re.sub(r"\x1b\[\d*m", "", seen.getvalue()).splitlines()[0].split())
    assert shown == [
        ["id", "created_at", "state", "reason"],
        ["id", "state", "level", "reason"],
    ]


def test_a_terminal_too_narrow_for_the_columns_gets_rows_as_lists(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    columns = ("id", "created_at", "reason", "stage")
    rows = [
        (Id(ONE), "2026-11-29 20:05:40", "many words " * 4, "shadow"),
        (Id(SOON), "2026-11-29 20:05:41", "", "canary"),
    ]
    lines = [
        "id          019a0000-0000",
        *in_terminal(monkeypatch, columns, rows),
    ]  # there is no header
    assert [re.sub(r"\x1b\[\d*m", "", line).rstrip() for line in lines] == [
        "id          019a0000-0000",
        "created_at  2026-11-29 20:05:40",
        "reason      many words many words many",
        "            words many words",
        "stage       shadow",
        "",
        "id          019a0000-1111",
        "created_at  2026-11-29 20:05:41",
        "stage       canary",
    ]


def test_ids_that_begin_alike_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = in_terminal(
        monkeypatch, ("id", "of"), [(Id(one), Id(MODEL)) for one in (SOON, LATER, SOON)]
    )
    assert [line.split() for line in lines] == [
        [one[:18], MODEL[:12]] for one in (SOON, LATER, SOON)
    ]


def test_one_thing_is_no_plural() -> None:
    assert [counted(number, "part") for number in (0, 1, 2)] == ["0 parts", "1 part", "2 parts"]
