"""Permissions, roles and principals, used by all packages, and the stored records of accounts."""

from dataclasses import dataclass
from enum import StrEnum

MASTER_OWNER = ""


class Permission(StrEnum):
    """A permission; each endpoint requires exactly one."""

    EVENTS_READ = "events:read"
    EVENTS_WRITE = "events:write"
    STREAM_READ = "stream:read"
    STREAM_MANAGE = "stream:manage"
    DATASETS_READ = "datasets:read"
    DATASETS_EXPORT = "datasets:export"
    METRICS_READ = "metrics:read"
    CONTROL_READ = "control:read"
    CONTROL_COMMAND = "control:command"
    CONTROL_LOWER = "control:lower"
    CONTROL_RAISE = "control:raise"
    CONTROL_APPROVE = "control:approve"
    AGENTS_READ = "agents:read"
    AGENTS_ENROL = "agents:enrol"
    AGENTS_REVOKE = "agents:revoke"
    AUDIT_READ = "audit:read"
    MODELS_READ = "models:read"
    MODELS_TRAIN = "models:train"
    MODELS_DEPLOY = "models:deploy"
    DOCS_READ = "docs:read"
    SELF_READ = "self:read"
    SELF = "self:manage"
    KEYS_OWN = "keys:own"
    KEYS_MANAGE = "keys:manage"
    USERS_MANAGE = "users:manage"


class Role(StrEnum):
    """Role of a user in the team."""

    VIEWER = "viewer"
    ANALYST = "analyst"
    OPERATOR = "operator"
    ML_ENGINEER = "ml_engineer"
    ADMIN = "admin"


_P = Permission
_VIEWER = {
    _P.EVENTS_READ,  # past events are readable for all users
    _P.STREAM_READ,  # the same, live
    _P.DATASETS_READ,  # schemas explain the events
    _P.METRICS_READ,  # dashboards show them to all users
    _P.CONTROL_READ,  # the state of the fleet is not secret within the team
    _P.AGENTS_READ,
    _P.MODELS_READ,
    _P.DOCS_READ,
    _P.SELF_READ,  # own identity and permissions
    _P.SELF,  # own password and sessions
    _P.KEYS_OWN,  # a key has at most the permissions of its owner
}
_ANALYST = _VIEWER | {
    _P.DATASETS_EXPORT,  # loads the database, and takes data out
    _P.AUDIT_READ,  # contains names of users
}
ROLES: dict[Role, frozenset[Permission]] = {
    Role.VIEWER: frozenset(_VIEWER),
    Role.ANALYST: frozenset(_ANALYST),
    Role.OPERATOR: frozenset(
        _VIEWER
        | {
            _P.AUDIT_READ,  # to check earlier actions before acting
            _P.STREAM_MANAGE,  # to list stream clients and disconnect them
            _P.EVENTS_WRITE,  # bots report with keys of their operators
            _P.CONTROL_COMMAND,  # controls the fleet
            _P.CONTROL_LOWER,  # stops the fleet without approval; a stolen viewer key must not
            _P.CONTROL_RAISE,  # raises levels; may need approvals
            _P.CONTROL_APPROVE,  # approves proposals of other users
            _P.AGENTS_ENROL,  # the only permission for keys on agent machines
            _P.AGENTS_REVOKE,  # removes agents; a key stolen from one agent must not
            _P.MODELS_DEPLOY,  # deploys models to the fleet
        }
    ),
    Role.ML_ENGINEER: frozenset(
        _ANALYST
        | {
            _P.MODELS_TRAIN,
            _P.MODELS_DEPLOY,  # shadow and canary; production also needs control:raise
        }
    ),
    Role.ADMIN: frozenset(Permission),  # manages accounts, and could take any role
}

# A stolen key must not create keys or users or change passwords, which would survive its
# revocation.
NEVER_IN_KEYS = frozenset({_P.SELF, _P.KEYS_OWN, _P.KEYS_MANAGE, _P.USERS_MANAGE})


class CredentialKind(StrEnum):
    """Kind of the credential of a principal."""

    MASTER = "master"
    USER = "user"
    BROWSER = "browser"
    KEY = "key"


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """Authenticated sender of a request; `id` is its constant name in limits, audit and logs."""

    id: str
    name: str
    kind: CredentialKind
    permissions: frozenset[Permission]
    user: str | None = None
    """User of the credential; None for the master key and its keys."""
    credential: str = ""
    """Id of the session or key, for later lookups."""
    authenticated_at_s: float = 0.0
    """Time of the password login; 0 for keys."""
    expires_at_s: float | None = None

    def may(self, permission: Permission) -> bool:
        """Return whether `permission` is granted."""
        return permission in self.permissions


MASTER = Principal(
    id="master", name="master", kind=CredentialKind.MASTER, permissions=frozenset(Permission)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """Account of a person; the name is its identity and is never reused."""

    name: str
    role: Role
    password: str
    created_s: float
    disabled: bool = False
    epoch: int = 0
    """Incremented to end all sessions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRecord:
    """A login session; `generation` counts its refresh tokens."""

    id: str
    user: str
    epoch: int
    generation: int
    authenticated_s: float
    expires_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """A stored key, with only the digest of its secret."""

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
    """Lockout after failed logins: after `free` failures `base_s`, then doubling up to `most_s`."""

    free: int = 5
    base_s: float = 2
    most_s: float = 900
    forget_s: float = 3600
