"""The logs in the format of https://c2sp.org/tlog-tiles, for public witnesses and verifiers.

Tiles contain only records covered by the newest signed checkpoint.
"""

import re
from dataclasses import dataclass

from mev.audit.errors import NoSuchRecordError, NotInCheckpointError
from mev.audit.log import SignedHead
from mev.audit.proofs import Proofs, Provable
from mev.crypto.note import NoteCheckpoint, sign_checkpoint, tile_entries, verifier_key

_PREFIX = "mev-audit/"
NOTE_PREFIX = _PREFIX.encode()
TILE_WIDTH = 256
_TILE_LEVELS = 8
_TILE = re.compile(
    r"(?P<level>entries|0|[1-9]|[1-5][0-9]|6[0-3])/(?P<index>(?!x000)(?:x[0-9]{3}/){0,5}[0-9]{3})"
    r"(?:\.p/(?P<width>[1-9][0-9]{0,2}))?",
    re.ASCII,
)


def origin(key_id: str, log_id: str) -> str:
    """Return the origin line of a log, unique by key and log id."""
    return f"{_PREFIX}{key_id}/{log_id}"


def log_id_of(origin_line: str) -> str:
    """Return the id of the log with this origin, or an empty string for other origins."""
    return origin_line.rpartition("/")[2] if origin_line.startswith(_PREFIX) else ""


@dataclass(frozen=True, slots=True)
class Tiles:
    """Serves checkpoints and tiles; methods block and read logs of other processes completely."""

    proofs: Proofs

    def checkpoint(self, log_id: str) -> bytes:
        """Return the newest signed checkpoint as a signed note."""
        head = _newest(self.proofs.log(log_id), log_id).checkpoint
        key = self.proofs.audit.journal.key
        named = NoteCheckpoint(origin(key.key_id, log_id), head.size, head.root_hash)
        return sign_checkpoint(key, named)

    def verifier_key(self, log_id: str) -> str:
        """Return the public key of the log's notes."""
        self.proofs.log(log_id)
        key = self.proofs.audit.journal.key
        return verifier_key(origin(key.key_id, log_id), key.public_key)

    def tile(self, log_id: str, path: str) -> bytes:
        """Return the tile at `path`: LEVEL/INDEX or entries/INDEX, partial with `.p/WIDTH`.

        :raises NoSuchRecordError: when the tile does not exist.
        """
        match = _TILE.fullmatch(path)
        width = int(match["width"] or TILE_WIDTH) if match else 0
        if match is None or not 0 < width <= TILE_WIDTH or match["width"] == str(TILE_WIDTH):
            raise NoSuchRecordError(
                f"{path!r} does not name a tile; see https://c2sp.org/tlog-tiles"
            )
        index = int(match["index"].replace("x", "").replace("/", ""))
        log = self.proofs.log(log_id)
        level = 0 if match["level"] == "entries" else int(match["level"]) * _TILE_LEVELS
        start = index * TILE_WIDTH
        if (start + width) << level > _newest(log, log_id).checkpoint.size:
            raise NoSuchRecordError(
                f"tile {path} is not below the newest signed checkpoint of {log_id}"
            )
        if match["level"] == "entries":
            return tile_entries(_records(log, start, width))
        return log.subtree_roots(level, start, width)


def _newest(log: Provable, log_id: str) -> SignedHead:
    if not log.heads:
        raise NotInCheckpointError(
            f"{log_id} has no signed checkpoint yet; ask again soon", retry_after_s=10
        )
    return log.heads[-1]


def _records(log: Provable, start: int, count: int) -> list[bytes]:
    found: list[bytes] = []
    while len(found) < count:
        more = log.records(start + len(found), count - len(found))
        if not more:
            raise NoSuchRecordError(
                f"record {start + len(found)} was removed from the folder by retention; GET "
                "/api/control/audit-log has it"
            )
        found += more
    return found
