"""The memory of an export is that of a part, however many there are."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
ROWS, PART_ROWS = 200_000, 10_000
MOST_BYTES = 64 << 20


def test_twenty_parts_take_no_more_memory_than_one(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "tests.unit.datasets.memory",
        str(tmp_path),
        str(ROWS),
        str(PART_ROWS),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert (found["rows"], found["parts"]) == (ROWS, ROWS // PART_ROWS)
    assert found["peak"] - found["before"] < MOST_BYTES, found
