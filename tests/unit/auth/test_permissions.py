import time

import pytest

from mev.auth.dependencies import FRESH_LOGIN_S, check
from mev.auth.errors import ForbiddenError, FreshLoginRequiredError, UnauthorizedError
from mev.auth.model import MASTER, NEVER_IN_KEYS, ROLES, CredentialKind, Permission, Principal, Role


def person(role: Role, *, authenticated_at_s: float = 0.0) -> Principal:
    return Principal(
        id="user:a",
        name="a",
        kind=CredentialKind.USER,
        permissions=ROLES[role],
        user="a",
        authenticated_at_s=authenticated_at_s,
    )


def test_a_permission_is_had_or_not() -> None:
    operator = person(Role.OPERATOR)
    assert check(operator, Permission.CONTROL_RAISE) is operator
    with pytest.raises(ForbiddenError) as caught:
        check(operator, Permission.USERS_MANAGE)
    assert caught.value.fields == {"permission": "users:manage"}
    with pytest.raises(UnauthorizedError):
        check(None, Permission.SELF_READ)


def test_a_password_of_the_last_hour_is_fresh_and_the_master_key_always() -> None:
    now = time.time()
    check(
        person(Role.ADMIN, authenticated_at_s=now - FRESH_LOGIN_S + 60),
        Permission.USERS_MANAGE,
        fresh=True,
    )
    check(MASTER, Permission.USERS_MANAGE, fresh=True)
    with pytest.raises(FreshLoginRequiredError):
        check(
            person(Role.ADMIN, authenticated_at_s=now - FRESH_LOGIN_S - 60),
            Permission.USERS_MANAGE,
            fresh=True,
        )


def test_only_administrators_keep_accounts_and_only_operators_and_they_raise() -> None:
    def roles_with(permission: Permission) -> set[Role]:
        return {role for role, permissions in ROLES.items() if permission in permissions}

    assert roles_with(Permission.USERS_MANAGE) == roles_with(Permission.KEYS_MANAGE) == {Role.ADMIN}
    assert (
        roles_with(Permission.CONTROL_RAISE)
        == roles_with(Permission.CONTROL_COMMAND)
        == {Role.OPERATOR, Role.ADMIN}
    )
    assert roles_with(Permission.CONTROL_LOWER) == {Role.OPERATOR, Role.ADMIN}


def test_every_permission_is_somebodys_and_the_administrator_has_all() -> None:
    assert ROLES[Role.ADMIN] == set(Permission)
    assert set(Role) == set(ROLES)
    assert set(Permission) > NEVER_IN_KEYS
