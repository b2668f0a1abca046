"""Passwords: Argon2id, in threads, a few at a time.

Every login costs one verification, whether or not there is such a user, so that neither the answer nor the work tells them apart.
"""

import asyncio
import secrets
import unicodedata
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Protocol, TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from mev.auth.errors import InvalidPasswordError, LoginBusyError

MIN_LENGTH = 12
MAX_LENGTH = 256
_THREADS = 2
_MAX_WAITING = 32
T = TypeVar("T")


class Hasher(Protocol):
    """What hashes: :class:`argon2.PasswordHasher`, or one that counts or costs less."""

    def hash(self, password: str) -> str:
        """Return a hash with its parameters and salt."""

    def verify(self, hash: str, password: str) -> bool:  # noqa: A002 - argon2's own name
        """Return True, or raise."""

    def check_needs_rehash(self, hash: str) -> bool:  # noqa: A002 - argon2's own name
        """Say whether the parameters have changed since."""


class Passwords:
    """Hashes and verifies; each takes tens of milliseconds and 64 MiB, so the number at once is bounded."""

    def __init__(self, hasher: Hasher | None = None) -> None:
        self._hasher: Hasher = hasher or PasswordHasher()
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="argon2")
        self._waiting = 0
        self._decoy: str | None = None

    async def hash(self, password: str) -> str:
        """Return the hash to keep of an acceptable `password`."""
        return await self._run(partial(self._hasher.hash, normal(password)))

    async def verify(self, kept: str | None, password: str) -> bool:
        """Say whether `password` is the one of the hash `kept`; None, for an unknown user, costs the same and is False."""
        if self._decoy is None:
            self._decoy = await self._run(partial(self._hasher.hash, secrets.token_urlsafe()))
        return await self._run(partial(self._verify, kept or self._decoy, normal(password)))

    def outdated(self, kept: str) -> bool:
        """Say whether a hash was made with other parameters than those of today."""
        return self._hasher.check_needs_rehash(kept)

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown(cancel_futures=True)

    async def _run(self, work: Callable[[], T]) -> T:
        if self._waiting >= _MAX_WAITING:
            raise LoginBusyError("too many logins are under way; try again in a moment", retry_after_s=2)
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        finally:
            self._waiting -= 1

    def _verify(self, kept: str, password: str) -> bool:
        try:
            return self._hasher.verify(kept, password)
        except (VerificationError, InvalidHashError):
            return False


def normal(password: str) -> str:
    """Return `password` as it is hashed: typed on whatever keyboard, the same letters are the same password."""
    return unicodedata.normalize("NFKC", password.encode(errors="replace").decode())


def check_acceptable(password: str, name: str) -> None:
    """Refuse a new password that is too short, too long, or the user's name.

    :raises InvalidPasswordError: saying which.
    """
    if not MIN_LENGTH <= len(password) <= MAX_LENGTH:
        raise InvalidPasswordError(f"a password has {MIN_LENGTH} to {MAX_LENGTH} characters; a few unrelated words make a good one")
    if name in password.lower() and len(password) < len(name) + MIN_LENGTH:
        raise InvalidPasswordError("the password is little more than the name; choose another")
    if len(set(password)) < 5:
        raise InvalidPasswordError("the password repeats too few characters; choose another")
