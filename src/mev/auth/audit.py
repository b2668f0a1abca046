"""How this package tells what is done; whoever keeps the audit trail passes itself in.

What gives somebody more is written down first and not done when that fails. What takes something away is done first: a full disk must
not keep a stolen key alive.
"""

import logging
from collections.abc import Mapping
from typing import Protocol

from mev.core.errors import MevError

LOG = logging.getLogger(__name__)
DONE, REFUSED = "ok", "refused"


class Audit(Protocol):
    """Takes one fact: who does what to what, how it ends, and what else is worth knowing. Secrets never enter it."""

    async def __call__(
        self,
        actor: str,
        action: str,
        object: str,  # noqa: A002 - the word for it
        outcome: str,
        details: Mapping[str, object],
    ) -> object:
        """Keep the fact, or raise a MevError."""


async def no_audit(actor: str, action: str, object: str, outcome: str, details: Mapping[str, object]) -> None:  # noqa: A002 - as above
    """Keep nothing."""


async def note(audit: Audit, actor: str, action: str, what: str, outcome: str = DONE, **details: object) -> None:
    """Keep a fact about what is done already; when that fails, the log says so."""
    try:
        await audit(actor, action, what, outcome, details)
    except MevError as error:
        LOG.warning("%s of %s by %s is not in the audit trail: %s", action, what, actor, error.detail, extra={"action": "audit_missing"})
