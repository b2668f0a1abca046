"""What authentication refuses."""

from mev.core.errors import InvalidInputError, MevError, NotFoundError, UnavailableError


class UnauthorizedError(MevError):
    """The request does not say who it is, or says it wrong."""

    code = "unauthorized"
    status = 401


class WrongPasswordError(MevError):
    """There is no such user with this password."""

    code = "wrong_password"
    status = 401


class SessionEndedError(MevError):
    """The session has ended; log in again."""

    code = "session_ended"
    status = 401


class ReusedTokenError(SessionEndedError):
    """A refresh token was used twice, so the session has ended; log in again."""


class ForbiddenError(MevError):
    """The request needs a permission that this principal has not."""

    code = "forbidden"
    status = 403


class FreshLoginRequiredError(MevError):
    """This needs a password given not long ago."""

    code = "fresh_login_required"
    status = 403


class CrossSiteError(MevError):
    """A browser sent this on behalf of a page that may not."""

    code = "cross_site_request"
    status = 403


class LoginLockedError(MevError):
    """Too many wrong passwords were given for this name."""

    code = "login_locked"
    status = 429


class LoginBusyError(UnavailableError):
    """Too many logins are under way."""

    code = "login_busy"


class AccountsUnavailableError(UnavailableError):
    """Redis, which keeps the accounts, does not answer."""

    code = "accounts_unavailable"


class InvalidPasswordError(InvalidInputError):
    """The new password cannot be used."""

    code = "invalid_password"


class InvalidNameError(InvalidInputError):
    """The name cannot be used."""

    code = "invalid_name"


class InvalidScopeError(InvalidInputError):
    """The key cannot have this permission."""

    code = "invalid_scope"


class UserExistsError(MevError):
    """There is a user of this name."""

    code = "user_exists"
    status = 409


class UnknownUserError(NotFoundError):
    """There is no such user."""

    code = "unknown_user"


class UnknownKeyError(NotFoundError):
    """There is no such API key."""

    code = "unknown_key"


class TooManyKeysError(MevError):
    """The owner has as many API keys as they may."""

    code = "too_many_keys"
    status = 409


class InvalidCursorError(InvalidInputError):
    """The cursor is none of this list."""

    code = "invalid_cursor"


class InvalidLifetimeError(InvalidInputError):
    """A key cannot last so long."""

    code = "invalid_lifetime"
