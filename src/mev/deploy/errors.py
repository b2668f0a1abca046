"""Why a model is not deployed."""

from mev.core.errors import InvalidInputError, MevError, NotFoundError


class UnknownDeploymentError(NotFoundError):
    """There is no such deployment."""

    code = "unknown_deployment"


class AmbiguousModuleError(InvalidInputError):
    """The fleet has several modules, and none was named."""

    code = "ambiguous_module"
    status = 422


class NoAgentsError(MevError):
    """Nobody would get the model."""

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
    """The deployment is further already."""

    code = "stage_backwards"
    status = 409


class OtherFormError(MevError):
    """The deployment is of another form of the model."""

    code = "other_form"
    status = 409


class AlreadyDeployedError(MevError):
    """The model decides in this module already."""

    code = "already_deployed"
    status = 409


class PreviousRefusedError(MevError):
    """The model that decides now could not be given back: agents would refuse it."""

    code = "previous_model_refused"
    status = 409


class NothingToRollBackError(MevError):
    """No deployment of this model can be taken back."""

    code = "nothing_to_roll_back"
    status = 409


class TooManyStepsError(MevError):
    """The deployment has as many steps as it may."""

    code = "too_many_steps"
    status = 409
