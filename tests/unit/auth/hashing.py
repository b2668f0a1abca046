"""Argon2 for tests."""

from typing import Literal

from argon2 import PasswordHasher

SECRET = "a-secret-of-the-tests-with-40-characters"


class CountingHasher(PasswordHasher):
    """Argon2 with the least cost, that counts what it verifies."""

    def __init__(self, time_cost: int = 1) -> None:
        super().__init__(time_cost, memory_cost=8, parallelism=1)
        self.verified = 0

    def verify(self, hash: str | bytes, password: str | bytes) -> Literal[True]:  # noqa: A002
        self.verified += 1
        return super().verify(hash, password)
