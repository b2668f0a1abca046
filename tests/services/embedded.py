"""The embedded broker, on a folder that goes with it."""

import tempfile
from pathlib import Path

from mev.bus.embedded import EmbeddedBroker, Protected


class TemporaryBroker(EmbeddedBroker):
    """An embedded broker whose log is gone when it is closed."""

    def __init__(
        self, *, timeout_s: float, partition_bytes: int = 64 << 20, protected: Protected = ("", ())
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="mev-broker-")
        super().__init__(
            Path(self._folder.name),
            timeout_s=timeout_s,
            partition_bytes=partition_bytes,
            protected=protected,
        )

    def close(self) -> None:
        """Stop the broker and remove its log."""
        super().close()
        self._folder.cleanup()
