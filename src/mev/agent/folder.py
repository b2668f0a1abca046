"""An agent's folder on disk: its lock, its key, its state, the counters of its reports. Safe to kill at any point."""

import fcntl
import re
from pathlib import Path
from typing import IO

from mev.agent.state import State, StateCorruptedError, from_json, to_json
from mev.core.errors import InvalidInputError, MevError
from mev.core.files import write_atomically
from mev.crypto.keys import SigningKey, load_or_create

_BLOCK = 1000
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class AgentRunsError(MevError):
    """Another process runs an agent of this id."""

    code = "agent_runs"
    status = 409


class InvalidAgentIdError(InvalidInputError):
    """An agent cannot have this id."""

    code = "invalid_agent_id"


class AgentFolder:
    """The folder of agent `agent_id` below `parent`; only its owner can read it."""

    def __init__(self, parent: Path, agent_id: str) -> None:
        if not _ID.fullmatch(agent_id):
            raise InvalidAgentIdError(f"{agent_id!r} is no agent id: 1 to 64 letters, digits, dots, dashes and underscores")
        self.agent_id = agent_id
        self.path = parent / agent_id
        self._lock: IO[str] | None = None

    def acquire(self) -> None:
        """Make the folder and lock it until :meth:`release` or the end of the process.

        :raises AgentRunsError: when another process has it.
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
        """Return the key that signs the agent's reports, made at its first start; its name follows from the public key."""
        return load_or_create(self.path / "key")

    def load(self) -> State | None:
        """Return the state, if the agent ever had one.

        :raises StateCorruptedError: when it cannot be read.
        """
        path = self.path / "state.json"
        try:
            return from_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except StateCorruptedError as error:
            raise StateCorruptedError(f"{path}: {error.detail}; remove the folder to enrol anew, under another id") from None

    def save(self, state: State) -> None:
        """Put `state` on disk; it is there when this returns."""
        write_atomically(self.path / "state.json", to_json(state))


class Counter:
    """Numbers that never repeat, also over crashes: they are reserved on disk, a block at a time, before they are used."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._last = self._reserved = int(path.read_text())
        except FileNotFoundError:
            self._last = self._reserved = 0
        except ValueError:
            raise StateCorruptedError(f"{path} holds no number; remove the folder to enrol anew, under another id") from None

    def next(self) -> int:
        """Return the next number, from 1."""
        if self._last == self._reserved:
            write_atomically(self._path, b"%d" % (self._reserved + _BLOCK))
            self._reserved += _BLOCK
        self._last += 1
        return self._last
