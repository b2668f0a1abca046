"""Why an agent refuses a command: the codes of its NACKs, beside those of :mod:`mev.crypto.errors`."""

from mev.core.errors import MevError


class RefusedError(MevError):
    """The agent refuses."""

    code = "refused"
    status = 409


class WrongTargetError(RefusedError):
    """The command names this agent, but another module."""

    code = "wrong_target"


class RolledBackError(RefusedError):
    """Something newer was accepted before."""

    code = "rolled_back"


class UnknownEpochError(RefusedError):
    """The version is of a key set that this agent has not seen."""

    code = "unknown_epoch"


class ExpiredError(RefusedError):
    """The command came too late."""

    code = "expired"


class StaleSnapshotError(RefusedError):
    """The snapshot is too old to say what is in force."""

    code = "stale_snapshot"


class UnsupportedError(RefusedError):
    """This agent cannot do that."""

    code = "unsupported"


class RejectedByPolicyError(RefusedError):
    """What the command asks for is not possible here."""

    code = "rejected_by_policy"


class UnknownActionError(RejectedByPolicyError):
    """The module has no such action."""

    code = "unknown_action"


class BadParamsError(RejectedByPolicyError):
    """The parameters do not fit what was declared."""

    code = "bad_params"


class UnknownPolicyTypeError(RejectedByPolicyError):
    """The module knows no such type of policy."""

    code = "unknown_policy_type"


class BadPolicyError(RejectedByPolicyError):
    """A rule or threshold of the policy cannot be applied."""

    code = "bad_policy"


class UnsupportedConfigError(RejectedByPolicyError):
    """The module has no such configuration key."""

    code = "unsupported_config"


class LevelForbidsError(RejectedByPolicyError):
    """The level in force does not allow the action."""

    code = "level_forbids"


class ModelLoadTimeoutError(RefusedError):
    """The model took too long to load."""

    code = "model_load_timeout"


class FailedError(RefusedError):
    """The command was accepted, and carrying it out failed."""

    code = "failed"


class InterruptedCommandError(RefusedError):
    """The agent ended while it carried the command out; whether it took effect is not known."""

    code = "interrupted"
