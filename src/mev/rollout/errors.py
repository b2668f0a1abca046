"""Errors of deploying a model."""

from mev.core.errors import InvalidInputError, MevError


class AmbiguousModuleError(InvalidInputError):
    """The fleet has several modules and the request names none."""

    code = "ambiguous_module"
    status = 422


class NoAgentsError(MevError):
    """The request selects no agent."""

    code = "no_agents"
    status = 409


class FormMissingError(InvalidInputError):
    """The model has no file in that form."""

    code = "model_form_missing"
    status = 409


class ArchivedModelError(InvalidInputError):
    """The model is archived."""

    code = "model_archived"
    status = 409


class StageBackwardsError(MevError):
    """The deployment is already at that stage or further."""

    code = "stage_backwards"
    status = 409


class OtherFormError(MevError):
    """The active deployment uses another form of the model."""

    code = "other_form"
    status = 409


class AlreadyDeployedError(MevError):
    """The model is already in production in this module."""

    code = "already_deployed"
    status = 409


class PreviousRefusedError(MevError):
    """The model in production could not be restored: agents would refuse it."""

    code = "previous_model_refused"
    status = 409


class NothingToRollBackError(MevError):
    """No deployment of this model can be rolled back."""

    code = "nothing_to_roll_back"
    status = 409
