"""Measurement of an export's memory.

Run as ``python -m tests.unit.datasets.memory FOLDER ROWS PART_ROWS``. Prints as JSON the resident
bytes before, the maximum during the export, and the rows exported.
"""

import json
import os
import sys
from contextlib import closing
from pathlib import Path

from mev.datasets.query import checked
from mev.sink.writer import Writer
from mev.store.clickhouse import Address, ClickHouse
from tests.unit.datasets.stored import export

ROWS_A_SLOT = 100
FILL = (
    "INSERT INTO `mev`.`bundle` (bundle_id, opportunity_id, slot, landed, latency_ns) SELECT"
    " hex(sipHash128(number)), hex(sipHash128(number, 1)), intDiv(number, {a_slot}), number % 3 ="
    " 0, sipHash64(number) FROM numbers({rows}) SETTINGS max_block_size = 65536,"
    " max_insert_threads = 1"
)


def status(name: str) -> int:
    """Return a line of /proc/self/status, in bytes."""
    (line,) = (
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith(f"{name}:")
    )
    return int(line.split()[1]) * 1024


def main() -> None:
    folder, rows, part_rows = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    os.chdir(folder)
    with closing(ClickHouse(Address(database="mev", path=folder / "data"))) as store:
        Writer(store, lambda _: None, "cluster").prepare()
        store.command(FILL.format(a_slot=ROWS_A_SLOT, rows=rows))
        export(
            store,
            folder / "small",
            checked("bundle", slots=(0, part_rows // ROWS_A_SLOT), part_rows=part_rows),
        )  # what stays
        before = status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        manifest = export(store, folder / "all", checked("bundle", part_rows=part_rows))
        peak = status("VmHWM")
    print(  # noqa: T201
        json.dumps(
            {
                "before": before,
                "peak": peak,
                "rows": manifest["rows"],
                "parts": len(manifest["parts"]),
            }
        )
    )


if __name__ == "__main__":
    main()
