"""Argon2 for tests."""

from typing import Literal

from argon2 import PasswordHasher
from argon2.exceptions import VerifyMismatchError

SECRET = "a-secret-of-the-tests-with-40-characters"


class CountingHasher(PasswordHasher):
    """Argon2 with the least cost, that counts what it verifies."""

    def __init__(self, time_cost: int = 1) -> None:
        super().__init__(time_cost, memory_cost=8, parallelism=1)
        self.verified = 0

    def verify(self, hash: str | bytes, password: str | bytes) -> Literal[True]:  # noqa: A002
        try:
            super().verify(hash, password)
        except VerifyMismatchError:
            self.verified += 1  # what is no hash at all costs no work, and is not counted
            raise
        self.verified += 1
        return True
