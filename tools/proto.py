"""Generate ``src/mev/wire/pb`` from ``protocol/``; ``--check`` fails when it is stale."""

import argparse
import filecmp
import re
import sys
import tempfile
from pathlib import Path

import grpc_tools
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "src/mev/wire/pb"
PACKAGE = "mev.wire.pb"


def generate(folder: Path) -> None:
    """Write every generated module and its stub to `folder`, with imports of our package."""
    protocol = ROOT / "protocol"
    sources = sorted(str(path) for path in protocol.rglob("*.proto"))
    well_known = str(Path(grpc_tools.__file__).parent / "_proto")
    with tempfile.TemporaryDirectory() as raw:
        if (
            protoc.main(
                [
                    "protoc",
                    f"-I{protocol}",
                    f"-I{well_known}",
                    f"--python_out={raw}",
                    f"--pyi_out={raw}",
                    *sources,
                ]
            )
            != 0
        ):
            sys.exit("tools/proto.py: protoc refused the sources; its message is above")
        for path in sorted(Path(raw, "mev", "v1").iterdir()):
            text = re.sub(
                r"^from mev\.v1 import",
                f"from {PACKAGE} import",
                path.read_text(),
                flags=re.MULTILINE,
            )
            (folder / path.name).write_text(text)
    (folder / "__init__.py").write_text(
        '"""Generated from protocol/ by `make proto`; do not edit."""\n'
    )


def main() -> None:
    """Generate, or check."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--check",
        action="store_true",
        help="change nothing; exit 1 when the committed code is stale",
    )
    if not parser.parse_args().check:
        TARGET.mkdir(parents=True, exist_ok=True)
        generate(TARGET)
        return
    with tempfile.TemporaryDirectory() as fresh:
        generate(Path(fresh))
        names = {path.name for folder in (Path(fresh), TARGET) for path in folder.glob("*.py*")}
        _, differ, missing = filecmp.cmpfiles(fresh, TARGET, sorted(names), shallow=False)
    if differ or missing:
        sys.exit(f"src/mev/wire/pb is stale ({', '.join(differ + missing)}): run `make proto`")


if __name__ == "__main__":
    main()
