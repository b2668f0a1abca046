"""Generate ``docs/settings.md`` from the settings; ``--check`` fails when it is stale."""

import argparse
import sys
from pathlib import Path

from mev.settings import Settings, shown

TARGET = Path(__file__).resolve().parent.parent / "docs/settings.md"
HEAD = """\
# Settings

Environment variables. An empty one counts as not set. `mev config show` prints them with their \
values, `mev config check` validates them.

| variable | default | meaning |
|---|---|---|
"""


def reference() -> str:
    """Return the page."""
    defaults = Settings.model_construct()
    return HEAD + "".join(
        f"| `{name}` | {f'`{value}`' if value else ''} | {meaning} |\n"
        for name, value, _, meaning in shown(defaults)
    )


def main() -> None:
    """Generate, or check."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--check",
        action="store_true",
        help="change nothing; exit 1 when the committed page is stale",
    )
    if not parser.parse_args().check:
        TARGET.write_text(reference())
    elif not TARGET.exists() or TARGET.read_text() != reference():
        sys.exit("docs/settings.md is stale: run `make docs`")


if __name__ == "__main__":
    main()
