"""Reason codes of an agent's NACKs, in addition to :mod:`mev.crypto.errors`."""

from mev.core.errors import MevError


class CommandRefusedError(MevError):
    """The agent refuses the command."""

    code = "refused"
    status = 409


class WrongTargetError(CommandRefusedError):
    """The command names this agent, but another module."""

    code = "wrong_target"


class RolledBackError(CommandRefusedError):
    """A newer version was accepted before."""

    code = "rolled_back"


class UnknownEpochError(CommandRefusedError):
    """The version has an epoch newer than this agent's key set."""

    code = "unknown_epoch"


class ExpiredError(CommandRefusedError):
    """The command has expired."""

    code = "expired"


class StaleSnapshotError(CommandRefusedError):
    """The snapshot is too old."""

    code = "stale_snapshot"


class UnsupportedCommandError(CommandRefusedError):
    """This agent does not support the command."""

    code = "unsupported"


class RejectedByPolicyError(CommandRefusedError):
    """The command cannot be executed by this module or at this level."""

    code = "rejected_by_policy"


class UnknownActionError(RejectedByPolicyError):
    """The module has no such action."""

    code = "unknown_action"


class BadParamsError(RejectedByPolicyError):
    """The parameters do not match the declaration."""

    code = "bad_params"


class UnknownPolicyTypeError(RejectedByPolicyError):
    """The module has no such policy type."""

    code = "unknown_policy_type"


class BadPolicyError(RejectedByPolicyError):
    """A rule or threshold of the policy is invalid."""

    code = "bad_policy"


class UnsupportedConfigError(RejectedByPolicyError):
    """The module has no such configuration key."""

    code = "unsupported_config"


class LevelForbidsError(RejectedByPolicyError):
    """The effective level does not allow the action."""

    code = "level_forbids"


class ModelLoadTimeoutError(CommandRefusedError):
    """The model took too long to load."""

    code = "model_load_timeout"


class FailedError(CommandRefusedError):
    """The command was accepted, but failed."""

    code = "failed"


class InterruptedCommandError(CommandRefusedError):
    """The agent ended during execution; whether the command took effect is unknown."""

    code = "interrupted"
