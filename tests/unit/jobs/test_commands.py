"""Tests of `mev jobs`."""

from typing import Any

import pytest

from mev.cli.jobs import print_job


def job(
    state: str, share: float | None, *, left_s: float | None = None, error: str | None = None
) -> dict[str, Any]:
    progress = (
        None
        if share is None
        else {"share": share, "note": "90 rows in 3 parts", "remaining_s": left_s}
    )
    said = {
        "id": "1",
        "kind": "export",
        "state": state,
        "owner": "eve",
        "created_at": "2026-11-22T21:44:51Z",
        "progress": progress,
    }
    return {**said, "error": {"code": error, "detail": "..."} if error else None}


@pytest.mark.parametrize(
    ("shown", "bar", "rest"),
    [
        (job("queued", None), "", []),
        (job("running", 0.0), "────────────   0%", ["90 rows in 3 parts"]),
        (job("running", 0.5, left_s=75.4), "━━━━━━──────  50%", ["~0:01:15", "90 rows in 3 parts"]),
        (job("running", 0.9999, left_s=0.2), "━━━━━━━━━━━─  99%", ["~0:00:00"]),
        (job("succeeded", 1.0, left_s=3.0), "━━━━━━━━━━━━ 100%", ["90 rows in 3 parts"]),
        (
            job("failed", 0.25, error="range_still_changing"),
            "━━━─────────  25%",
            ["range_still_changing"],
        ),
    ],
)
def test_a_job_has_a_bar_and_what_is_left_of_it(
    capsys: pytest.CaptureFixture[str], shown: dict[str, Any], bar: str, rest: list[str]
) -> None:
    print_job(shown, json=False)
    _, line = capsys.readouterr().out.splitlines()
    assert bar in line
    assert [word for word in rest if word not in line] == []
    assert ("~" in line) == any(word.startswith("~") for word in rest)
    assert ("%" in line) == bool(bar)
