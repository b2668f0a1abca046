"""Permissions, roles and principals: plain values that every capability may use."""

from dataclasses import dataclass
from enum import StrEnum


class Permission(StrEnum):
    """One thing that may be done; endpoints ask for exactly one."""

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
    """What a user is in the team."""

    VIEWER = "viewer"
    ANALYST = "analyst"
    OPERATOR = "operator"
    ML_ENGINEER = "ml_engineer"
    ADMIN = "admin"


_P = Permission
_VIEWER = {
    _P.EVENTS_READ,  # what happened is what everyone is here for
    _P.STREAM_READ,  # the same, live
    _P.DATASETS_READ,  # schemas explain the events
    _P.METRICS_READ,  # a dashboard shows them to everyone
    _P.CONTROL_READ,  # the state of the fleet is no secret within the team
    _P.AGENTS_READ,
    _P.MODELS_READ,
    _P.DOCS_READ,
    _P.SELF_READ,  # who one is and what one may do
    _P.SELF,  # one's own password and sessions
    _P.KEYS_OWN,  # a key can do no more than its owner
}
_ANALYST = _VIEWER | {
    _P.DATASETS_EXPORT,  # costs the database much work, and takes data out
    _P.AUDIT_READ,  # names who did what
}
ROLES: dict[Role, frozenset[Permission]] = {
    Role.VIEWER: frozenset(_VIEWER),
    Role.ANALYST: frozenset(_ANALYST),
    Role.OPERATOR: frozenset(
        _VIEWER
        | {
            _P.AUDIT_READ,  # to see what was done before acting
            _P.STREAM_MANAGE,  # to see who reads, and to cut off who should not
            _P.EVENTS_WRITE,  # bots report through keys of their operators
            _P.CONTROL_COMMAND,  # runs the fleet
            _P.CONTROL_LOWER,  # stops it, alone and at once; a stolen viewer's key must not
            _P.CONTROL_RAISE,  # and lets it trade more; needs approvals beside
            _P.CONTROL_APPROVE,  # the second person; nobody approves their own
            _P.AGENTS_ENROL,  # adds machines to the fleet; all that the keys on those machines need
            _P.AGENTS_REVOKE,  # takes them out; a key stolen from one machine must not take out the others
            _P.MODELS_DEPLOY,  # decides what the fleet runs
        }
    ),
    Role.ML_ENGINEER: frozenset(
        _ANALYST
        | {
            _P.MODELS_TRAIN,
            _P.MODELS_DEPLOY,  # shadow and canary are theirs; production asks for control:raise beside
        }
    ),
    Role.ADMIN: frozenset(Permission),  # keeps the accounts, so could take any role anyway
}

# A key that is stolen must not outlive its revocation by making another key or user, nor change a password.
NEVER_IN_KEYS = frozenset({_P.SELF, _P.KEYS_OWN, _P.KEYS_MANAGE, _P.USERS_MANAGE})


class Kind(StrEnum):
    """By what a principal showed who it is."""

    MASTER = "master"
    USER = "user"
    BROWSER = "browser"
    KEY = "key"


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """Who sent a request; `id` names it in limits, audit and logs and never changes."""

    id: str
    name: str
    kind: Kind
    permissions: frozenset[Permission]
    user: str | None = None
    """The user behind it; None for the master key and its keys."""
    credential: str = ""
    """The session's or key's id, by which it is looked up again."""
    authenticated_at_s: float = 0.0
    """When the password was given; 0 for keys."""
    expires_at_s: float | None = None

    def may(self, permission: Permission) -> bool:
        """Say whether `permission` is granted."""
        return permission in self.permissions


MASTER = Principal(id="master", name="master", kind=Kind.MASTER, permissions=frozenset(Permission))
