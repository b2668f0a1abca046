"""Why a command is not issued."""

from mev.core.errors import InvalidInputError, MevError, NotFoundError, UnavailableError


class InvalidCommandError(InvalidInputError):
    """The command cannot mean anything to those it is for."""

    code = "invalid_command"
    status = 422


class UnknownCommandError(NotFoundError):
    """There is no such command."""

    code = "unknown_command"


class UnknownAgentError(NotFoundError):
    """There is no such agent."""

    code = "unknown_agent"


class UnknownProposalError(NotFoundError):
    """There is no such proposal, or it is settled."""

    code = "unknown_proposal"


class AgentExistsError(MevError):
    """An agent of this name has another key."""

    code = "agent_exists"
    status = 409


class IdempotencyConflictError(MevError):
    """The idempotency key was used for another request."""

    code = "idempotency_conflict"
    status = 409


class SamePersonError(MevError):
    """Approval needs another person."""

    code = "same_person"
    status = 403


class TooManyProposalsError(MevError):
    """One person has as many proposals as they may."""

    code = "too_many_proposals"
    status = 409


class TooManyAgentsError(MevError):
    """The fleet has as many agents as it may."""

    code = "too_many_agents"
    status = 409


class OvertakenError(MevError):
    """The level was ordered anew since this was proposed."""

    code = "overtaken"
    status = 409


class RetiredKeyError(UnavailableError):
    """The signing key of this replica was replaced; nobody obeys what it signs."""

    code = "signing_key_retired"


class ForeignKeySetError(MevError):
    """The control topic belongs to another control plane."""

    code = "foreign_key_set"
    status = 409


class UnreadError(UnavailableError):
    """A message was published and not read back in time: whether it counts is not known yet."""

    code = "control_unread"


class JournalError(MevError):
    """The control journal cannot be written."""

    code = "journal_unavailable"
    status = 503
