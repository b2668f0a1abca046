"""What limits refuse."""

from mev.core.errors import MevError, UnavailableError


class RateLimitedError(MevError):
    """More requests were sent than the rate allows."""

    code = "rate_limited"
    status = 429


class OverloadedError(UnavailableError):
    """There is more to do than can be done in time; some of it is refused early."""

    code = "overloaded"
