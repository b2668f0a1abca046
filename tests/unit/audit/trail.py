"""What the tests of the audit trail share."""

from pathlib import Path

from mev.audit.journal import Journal
from mev.audit.trusted import read_trusted, trusted_file
from mev.audit.verify import Verdict, verify_folder
from mev.crypto.keys import SigningKey
from mev.wire.pb.audit_pb2 import AuditRecord

KEY = SigningKey("audit-1", b"\x05" * 32)


def journal(folder: Path, *, segment_bytes: int = 1 << 20, role: str = "api") -> Journal:
    """Open the journal in `folder`."""
    return Journal(folder, role, KEY, segment_bytes=segment_bytes)


def records(count: int, start: int = 0) -> list[AuditRecord]:
    """Return `count` records that differ, at times `start` and after."""
    return [
        AuditRecord(at_ns=n, actor="alice", action="control.level", object=f"agent-{n}", outcome="ok") for n in range(start, start + count)
    ]


def verdict(folder: Path) -> Verdict:
    """Verify the one log in `folder`."""
    (found,) = verify_folder(folder, read_trusted(trusted_file(folder)))
    return found
