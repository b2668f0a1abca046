"""Errors of control."""

from mev.core.errors import InvalidInputError, MevError, NotFoundError, UnavailableError


class InvalidCommandError(InvalidInputError):
    """The command is not valid for its target."""

    code = "invalid_command"
    status = 422


class SchemaNotAllowedError(InvalidCommandError):
    """The schema of an action is too large, or has a keyword that is not allowed."""

    code = "schema_not_allowed"


class RaisesLevelError(MevError):
    """The level is higher than the current one, and the request allows only lowering."""

    code = "raises_level"
    status = 409


class UnknownPolicyError(NotFoundError):
    """The policy does not exist."""

    code = "unknown_policy"


class NoAcknowledgedVersionError(MevError):
    """The policy has no earlier version that agents acknowledged."""

    code = "no_acknowledged_version"
    status = 409


class AgentExistsError(MevError):
    """An agent with this name has another key."""

    code = "agent_exists"
    status = 409


class KeyNotProvenError(MevError):
    """The request does not prove possession of the agent's private key."""

    code = "key_not_proven"
    status = 403


class IdempotencyConflictError(MevError):
    """The idempotency key was used for a different request."""

    code = "idempotency_conflict"
    status = 409


class SamePersonError(MevError):
    """A second person must approve."""

    code = "same_person"
    status = 403


class TooManyProposalsError(MevError):
    """The limit of proposals per person is reached."""

    code = "too_many_proposals"
    status = 409


class TooManyAgentsError(MevError):
    """The limit of agents is reached."""

    code = "too_many_agents"
    status = 409


class OvertakenError(MevError):
    """A newer command on the same subject was issued after the proposal."""

    code = "overtaken"
    status = 409


class RetiredKeyError(UnavailableError):
    """The signing key of this replica was replaced; agents ignore its commands."""

    code = "signing_key_retired"


class ForeignKeySetError(MevError):
    """The control topic belongs to another control plane."""

    code = "foreign_key_set"
    status = 409


class JournalError(MevError):
    """The control journal cannot be written."""

    code = "journal_unavailable"
    status = 503
