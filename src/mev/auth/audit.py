"""Audit callback of this package.

Actions that grant something are recorded first, and not executed if that fails. Actions that revoke
something are executed first: a full disk must not keep a stolen key valid.
"""

import logging
from collections.abc import Mapping
from typing import Protocol

from mev.core.errors import MevError

LOG = logging.getLogger(__name__)
DONE, REFUSED = "ok", "refused"


class AuditCallback(Protocol):
    """Records one action with actor, object, outcome and details; secrets are not allowed."""

    async def __call__(
        self,
        actor: str,
        action: str,
        object: str,  # noqa: A002
        outcome: str,
        details: Mapping[str, object],
    ) -> object:
        """Record the action, or raise a MevError."""


async def no_audit(
    actor: str,
    action: str,
    object: str,  # noqa: A002
    outcome: str,
    details: Mapping[str, object],
) -> None:
    """Discard the record."""


async def note(
    audit: AuditCallback, actor: str, action: str, what: str, outcome: str = DONE, **details: object
) -> None:
    """Record a completed action; a failure is only logged."""
    try:
        await audit(actor, action, what, outcome, details)
    except MevError as error:
        LOG.warning(
            "%s of %s by %s is not in the audit trail: %s",
            action,
            what,
            actor,
            error.detail,
            extra={"action": "audit_missing"},
        )
