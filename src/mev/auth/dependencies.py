"""Permissions as types: a parameter ``who: EventsRead`` protects an endpoint.

The principal was determined before the request reaches FastAPI; a check is a set lookup.
"""

import time
from typing import Annotated, Any

from fastapi import Depends, Request

from mev.auth.errors import ForbiddenError, FreshLoginRequiredError, UnauthorizedError
from mev.auth.model import CredentialKind, Permission, Principal

PRINCIPAL = "mev.principal"
FRESH_LOGIN_S = 3600


class Requires:
    """Dependency that returns the principal with `permission`, or with `instead`.

    `fresh` requires a password entered within the last hour.
    """

    def __init__(
        self, permission: Permission, *, instead: Permission | None = None, fresh: bool = False
    ) -> None:
        self.permission = permission
        self.instead = instead
        self.fresh = fresh

    async def __call__(self, request: Request) -> Principal:
        """Return the principal of the request.

        :raises ForbiddenError: when the permission is missing.
        """
        principal: Principal | None = request.scope.get(PRINCIPAL)
        has_other = (
            principal is not None and self.instead is not None and principal.may(self.instead)
        )
        return check(
            principal,
            self.instead if has_other and self.instead else self.permission,
            fresh=self.fresh,
        )


def check(principal: Principal | None, permission: Permission, *, fresh: bool = False) -> Principal:
    """Return `principal` if it has `permission`.

    :raises UnauthorizedError, ForbiddenError, FreshLoginRequiredError: otherwise.
    """
    if principal is None:
        raise UnauthorizedError("a credential is required")
    if permission not in principal.permissions:
        raise ForbiddenError(
            f"permission {permission.value} is required; {principal.name} does not have it",
            permission=permission.value,
        )
    if (
        fresh
        and principal.kind is not CredentialKind.MASTER
        and time.time() - principal.authenticated_at_s > FRESH_LOGIN_S
    ):
        raise FreshLoginRequiredError(
            "a login with password within the last hour is required; log in again"
        )
    return principal


def permission_of(dependant: Any) -> Permission | None:
    """Return the permission that a route requires, given FastAPI's dependant."""
    for dependency in dependant.dependencies:
        if isinstance(dependency.call, Requires):
            return dependency.call.permission
    return None


EventsRead = Annotated[Principal, Depends(Requires(Permission.EVENTS_READ))]
EventsWrite = Annotated[Principal, Depends(Requires(Permission.EVENTS_WRITE))]
StreamRead = Annotated[Principal, Depends(Requires(Permission.STREAM_READ))]
StreamManage = Annotated[Principal, Depends(Requires(Permission.STREAM_MANAGE))]
DatasetsRead = Annotated[Principal, Depends(Requires(Permission.DATASETS_READ))]
DatasetsExport = Annotated[Principal, Depends(Requires(Permission.DATASETS_EXPORT))]
MetricsRead = Annotated[Principal, Depends(Requires(Permission.METRICS_READ))]
ControlRead = Annotated[Principal, Depends(Requires(Permission.CONTROL_READ))]
ControlCommand = Annotated[Principal, Depends(Requires(Permission.CONTROL_COMMAND))]
ControlLower = Annotated[Principal, Depends(Requires(Permission.CONTROL_LOWER))]
ControlApprove = Annotated[Principal, Depends(Requires(Permission.CONTROL_APPROVE))]
AgentsRead = Annotated[Principal, Depends(Requires(Permission.AGENTS_READ))]
AgentsEnrol = Annotated[Principal, Depends(Requires(Permission.AGENTS_ENROL))]
AgentsRevoke = Annotated[Principal, Depends(Requires(Permission.AGENTS_REVOKE))]
AuditRead = Annotated[Principal, Depends(Requires(Permission.AUDIT_READ))]
ModelsRead = Annotated[Principal, Depends(Requires(Permission.MODELS_READ))]
ModelsFetch = Annotated[
    Principal, Depends(Requires(Permission.MODELS_READ, instead=Permission.AGENTS_ENROL))
]
ModelsTrain = Annotated[Principal, Depends(Requires(Permission.MODELS_TRAIN))]
ModelsDeploy = Annotated[Principal, Depends(Requires(Permission.MODELS_DEPLOY))]
DocsRead = Annotated[Principal, Depends(Requires(Permission.DOCS_READ))]
SelfRead = Annotated[Principal, Depends(Requires(Permission.SELF_READ))]
Self = Annotated[Principal, Depends(Requires(Permission.SELF))]
KeysOwn = Annotated[Principal, Depends(Requires(Permission.KEYS_OWN))]
KeysOwnFresh = Annotated[Principal, Depends(Requires(Permission.KEYS_OWN, fresh=True))]
KeysManage = Annotated[Principal, Depends(Requires(Permission.KEYS_MANAGE))]
UsersManage = Annotated[Principal, Depends(Requires(Permission.USERS_MANAGE))]
UsersManageFresh = Annotated[Principal, Depends(Requires(Permission.USERS_MANAGE, fresh=True))]
