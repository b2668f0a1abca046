"""An agent's folder: lock, key, state and report counter; crash-safe."""

import fcntl
import re
from pathlib import Path
from typing import IO

from mev.agent.state import AgentState, StateCorruptedError, from_json, to_json
from mev.core.errors import InvalidInputError, MevError
from mev.core.files import write_atomically
from mev.crypto.keys import SigningKey, load_or_create

_BLOCK = 1000
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class AgentRunsError(MevError):
    """Another process runs an agent with this id."""

    code = "agent_runs"
    status = 409


class InvalidAgentIdError(InvalidInputError):
    """The id of the agent is invalid."""

    code = "invalid_agent_id"


class AgentFolder:
    """The folder of agent `agent_id` in `parent`, readable only by its owner."""

    def __init__(self, parent: Path, agent_id: str) -> None:
        if not _ID.fullmatch(agent_id):
            raise InvalidAgentIdError(
                f"{agent_id!r} is no agent id: 1 to 64 letters, digits, dots, dashes and "
                "underscores"
            )
        self.agent_id = agent_id
        self.path = parent / agent_id
        self._lock: IO[str] | None = None

    def acquire(self) -> None:
        """Create and lock the folder until :meth:`release` or the end of the process.

        :raises AgentRunsError: when another process holds the lock.
        """
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = (self.path / "lock").open("a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            raise AgentRunsError(f"agent {self.agent_id} runs already, on {self.path}") from None
        self._lock = lock

    def release(self) -> None:
        """Unlock the folder."""
        if self._lock:
            self._lock.close()
            self._lock = None

    def key(self) -> SigningKey:
        """Return the key that signs the agent's reports, created at the first start."""
        return load_or_create(self.path / "key")

    def load(self) -> AgentState | None:
        """Return the state, or None at the first start.

        :raises StateCorruptedError: when it cannot be read.
        """
        path = self.path / "state.json"
        try:
            return from_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except StateCorruptedError as error:
            raise StateCorruptedError(
                f"{path}: {error.detail}; remove the folder to enrol anew, under another id"
            ) from None

    def save(self, state: AgentState) -> None:
        """Store `state` durably."""
        write_atomically(self.path / "state.json", to_json(state))


class DurableCounter:
    """Counter that never repeats, even after a crash: blocks are reserved on disk before use."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._last = self._reserved = int(path.read_text())
        except FileNotFoundError:
            self._last = self._reserved = 0
        except ValueError:
            raise StateCorruptedError(
                f"{path} holds no number; remove the folder to enrol anew, under another id"
            ) from None

    def next(self) -> int:
        """Return the next number, starting at 1."""
        if self._last == self._reserved:
            write_atomically(self._path, b"%d" % (self._reserved + _BLOCK))
            self._reserved += _BLOCK
        self._last += 1
        return self._last
