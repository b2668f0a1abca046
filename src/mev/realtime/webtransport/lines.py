"""Messages on a stream: one a line."""


class LineTooLongError(Exception):
    """A line, or what came of it so far, is longer than allowed."""


class Lines:
    """Cuts a stream into lines of at most `max_size` bytes; holds what was not taken yet, of a bounded size too."""

    def __init__(self, max_size: int) -> None:
        self.max_size = max_size
        """May change between lines."""
        self._buffer = bytearray()
        self._searched = 0

    def feed(self, data: bytes) -> None:
        """Take what has arrived."""
        self._buffer += data

    def next(self) -> bytes | None:
        """Return the next whole line that is not empty, None when there is none.

        :raises LineTooLongError: when it is too long, whole or not.
        """
        while True:
            end = self._buffer.find(b"\n", self._searched)
            if end < 0:
                self._searched = len(self._buffer)
            if (end if end >= 0 else len(self._buffer)) > self.max_size:
                raise LineTooLongError
            if end < 0:
                return None
            line = bytes(self._buffer[:end])
            del self._buffer[: end + 1]
            self._searched = 0
            if line.strip():
                return line

    def __len__(self) -> int:
        return len(self._buffer)
