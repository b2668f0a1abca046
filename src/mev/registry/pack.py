"""Convert an XGBoost model to the data-only form.

Supported objectives are binary:logistic, reg:squarederror and rank:ndcg, with numeric splits.
"""

from typing import Any, cast

import numpy as np
import orjson
import xgboost as xgb

from mev.registry.errors import UnsupportedModelError
from mev.scoring.mevt import DecisionTree, TreeObjective, encode

# A rank score is the plain sum of the leaves, as for squared error.
_OBJECTIVES = {
    "binary:logistic": TreeObjective.LOGISTIC,
    "reg:squarederror": TreeObjective.SQUARED_ERROR,
    "rank:ndcg": TreeObjective.SQUARED_ERROR,
}


def pack(model: xgb.Booster) -> bytes:
    """Return the ``.mevt`` file of `model`.

    Takes a booster, not bytes: XGBoost's parser crashes on tampered files, so callers check the
    digest before they parse one.

    :raises UnsupportedModelError: naming the first part that the form does not support.
    """
    learner = cast("dict[str, Any]", orjson.loads(bytes(model.save_raw("json")))["learner"])
    shape = learner["learner_model_param"]
    objective = _OBJECTIVES.get(learner["objective"]["name"])
    if objective is None:
        raise UnsupportedModelError(
            f"objective {learner['objective']['name']!r}; the data-only form knows"
            f" {', '.join(_OBJECTIVES)}"
        )
    booster = learner["gradient_booster"]
    if booster["name"] != "gbtree":
        raise UnsupportedModelError(f"booster {booster['name']!r}; the data-only form knows gbtree")
    if int(shape["num_class"]) > 1 or int(shape["num_target"]) > 1:
        raise UnsupportedModelError("several classes or targets; the data-only form knows one")
    trees = [_tree(number, tree) for number, tree in enumerate(booster["model"]["trees"])]
    if not trees:
        raise UnsupportedModelError("a model without trees")
    return encode(
        objective, int(shape["num_feature"]), np.float32(shape["base_score"].strip("[]")), trees
    )


def _tree(number: int, tree: dict[str, Any]) -> DecisionTree:
    if int(tree["tree_param"]["size_leaf_vector"]) > 1:
        raise UnsupportedModelError(
            f"tree {number} has vectors in its leaves; the data-only form knows numbers"
        )
    if any(tree["split_type"]):
        raise UnsupportedModelError(
            f"tree {number} has splits by category; the data-only form knows splits by number"
        )
    value = np.array(tree["split_conditions"], np.float32)
    if not np.isfinite(value).all():
        raise UnsupportedModelError(
            f"tree {number} has a threshold or a leaf that is no finite number"
        )
    return DecisionTree(
        value=value,
        left=np.array(tree["left_children"], np.int32),
        right=np.array(tree["right_children"], np.int32),
        feature=np.array(tree["split_indices"], np.int32),
        missing_left=np.array(tree["default_left"], np.bool_),
    )
