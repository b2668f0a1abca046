"""Errors of authentication and authorization."""

from mev.core.errors import InvalidInputError, MevError, NotFoundError, UnavailableError


class UnauthorizedError(MevError):
    """The request has no credential, or an invalid one."""

    code = "unauthorized"
    status = 401


class WrongPasswordError(MevError):
    """Name or password is wrong."""

    code = "wrong_password"
    status = 401


class SessionEndedError(MevError):
    """The session has ended; log in again."""

    code = "session_ended"
    status = 401


class ReusedTokenError(SessionEndedError):
    """A refresh token was used twice, so the session has ended; log in again."""


class ForbiddenError(MevError):
    """The principal lacks the required permission."""

    code = "forbidden"
    status = 403


class FreshLoginRequiredError(MevError):
    """A recent password login is required."""

    code = "fresh_login_required"
    status = 403


class CrossSiteError(MevError):
    """A browser sent this request on behalf of a page without permission."""

    code = "cross_site_request"
    status = 403


class LoginLockedError(MevError):
    """Too many wrong passwords were given for this name."""

    code = "login_locked"
    status = 429


class LoginBusyError(UnavailableError):
    """Too many logins are in progress."""

    code = "login_busy"


class AccountsUnavailableError(UnavailableError):
    """Redis, which stores the accounts, does not answer."""

    code = "accounts_unavailable"


class InvalidPasswordError(InvalidInputError):
    """The new password is not acceptable."""

    code = "invalid_password"


class InvalidNameError(InvalidInputError):
    """The name is invalid."""

    code = "invalid_name"


class InvalidScopeError(InvalidInputError):
    """The key cannot have this permission."""

    code = "invalid_scope"


class UserExistsError(MevError):
    """A user with this name exists."""

    code = "user_exists"
    status = 409


class UnknownUserError(NotFoundError):
    """The user does not exist."""

    code = "unknown_user"


class UnknownApiKeyError(NotFoundError):
    """The API key does not exist."""

    code = "unknown_key"
