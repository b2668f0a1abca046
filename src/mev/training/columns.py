"""Selection of the columns that a training may use.

The same rules apply when a training is submitted and when it reads its export.
"""

from collections.abc import Sequence

from mev.datasets.catalog import Dataset
from mev.training.errors import LeakingFeatureError, UnknownColumnError, UnregistrableModelError
from mev.training.spec import TrainSpec

SLOT = "slot"
PROFIT = "profit_lamports"
OUTCOMES = ("landed", PROFIT, "tip_lamports")
"""Columns that are known only after the outcome."""
SIMULATED = "simulated"
KEYS = ("id", SLOT, "detected_at_ns", "agent_id", SIMULATED)


def choose_features(columns: Sequence[str], spec: TrainSpec) -> tuple[str, ...]:
    """Return the feature columns, in order.

    :raises UnknownColumnError: when a feature, the target or the slot is not among `columns`.
    :raises LeakingFeatureError: when a feature contains the outcome.
    """
    every = tuple(name for name in columns if name not in (*KEYS, *OUTCOMES, spec.target))
    chosen = spec.features or every
    for name in (*chosen, spec.target, SLOT):
        if name not in columns:
            raise UnknownColumnError(
                f"the data has no column {name[:100]!r}; it has {', '.join(columns)}",
                column=name[:100],
            )
    if leaking := [name for name in chosen if name in (*OUTCOMES, spec.target)]:
        raise LeakingFeatureError(
            f"{', '.join(leaking)}: known only after the decision; leave it out of the features",
            columns=leaking,
        )
    if not chosen or len(set(chosen)) < len(chosen):
        raise UnknownColumnError("the features are none, or one comes twice")
    return chosen


def check_request(dataset: Dataset, columns: Sequence[str], spec: TrainSpec) -> None:
    """Check that a training on `columns` of a dataset can succeed.

    :raises UnknownColumnError, LeakingFeatureError: as :func:`choose_features` does.
    :raises UnregistrableModelError: when agents do not compute the features.
    """
    if dataset.features is None:
        raise UnregistrableModelError(
            f"{dataset.name} has no features that agents compute; train on training_examples"
        )
    chosen = choose_features(columns, spec)
    if extra := [name for name in chosen if name not in dataset.features.names]:
        raise UnregistrableModelError(
            f"{', '.join(extra)}: not among the features that agents compute; leave it out of the"
            " features"
        )
