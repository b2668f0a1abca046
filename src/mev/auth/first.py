"""The first administrator's password where nobody sees it printed: in a file, for as long as it is needed."""

import logging
from pathlib import Path

from mev.core.files import write_atomically

LOG = logging.getLogger(__name__)
_NAME = "first-password"


class FirstPassword:
    """A file in `folder` that only its owner can read."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / _NAME

    def keep(self, password: str) -> None:
        """Write it down."""
        write_atomically(self.path, f"{password}\n".encode())

    def forget(self) -> None:
        """Remove it: it has been read, or is the password no longer."""
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            LOG.warning("%s is still there: %s; remove it", self.path, error.strerror, extra={"action": "first_password"})
