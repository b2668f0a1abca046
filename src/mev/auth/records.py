"""What is kept of accounts."""

from dataclasses import dataclass

from mev.auth.model import Permission, Role

MASTER_OWNER = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """A person's account; its name is its identity and is never given to another."""

    name: str
    role: Role
    password: str
    created_s: float
    disabled: bool = False
    epoch: int = 0
    """Grows to end every session there is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A login: `generation` counts the refresh tokens made from it."""

    id: str
    user: str
    epoch: int
    generation: int
    authenticated_s: float
    expires_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """A key as it is kept: of its secret only the digest."""

    id: str
    name: str
    owner: str
    digest: str
    scopes: frozenset[Permission]
    created_s: float
    expires_s: float
    used_s: float | None = None
    revoked_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """How failed logins lock a name: after `free` ones, for `base_s`, then twice as long each time up to `most_s`."""

    free: int = 5
    base_s: float = 2
    most_s: float = 900
    forget_s: float = 3600
