"""From a model of XGBoost to the data-only form: binary:logistic, reg:squarederror and rank:ndcg, trees whose splits compare numbers."""

from typing import Any, cast

import numpy as np
import orjson
import xgboost as xgb

from mev.models.errors import UnsupportedModelError
from mev.predict.mevt import Objective, Tree, encode

# A rank is the sum of the leaves, as a squared error's value is.
_OBJECTIVES = {
    "binary:logistic": Objective.LOGISTIC,
    "reg:squarederror": Objective.SQUARED_ERROR,
    "rank:ndcg": Objective.SQUARED_ERROR,
}


def pack(model: xgb.Booster) -> bytes:
    """Return the ``.mevt`` file of `model`.

    It takes no bytes: XGBoost's own parser dies on a file that was tampered with, so whoever reads one checks its digest first.

    :raises UnsupportedModelError: naming the first part of it that the form does not know.
    """
    learner = cast("dict[str, Any]", orjson.loads(bytes(model.save_raw("json")))["learner"])
    shape = learner["learner_model_param"]
    objective = _OBJECTIVES.get(learner["objective"]["name"])
    if objective is None:
        raise UnsupportedModelError(f"objective {learner['objective']['name']!r}; the data-only form knows {', '.join(_OBJECTIVES)}")
    booster = learner["gradient_booster"]
    if booster["name"] != "gbtree":
        raise UnsupportedModelError(f"booster {booster['name']!r}; the data-only form knows gbtree")
    if int(shape["num_class"]) > 1 or int(shape["num_target"]) > 1:
        raise UnsupportedModelError("several classes or targets; the data-only form knows one")
    trees = [_tree(number, tree) for number, tree in enumerate(booster["model"]["trees"])]
    if not trees:
        raise UnsupportedModelError("a model without trees")
    return encode(objective, int(shape["num_feature"]), np.float32(shape["base_score"].strip("[]")), trees)


def _tree(number: int, tree: dict[str, Any]) -> Tree:
    if int(tree["tree_param"]["size_leaf_vector"]) > 1:
        raise UnsupportedModelError(f"tree {number} has vectors in its leaves; the data-only form knows numbers")
    if any(tree["split_type"]):
        raise UnsupportedModelError(f"tree {number} has splits by category; the data-only form knows splits by number")
    value = np.array(tree["split_conditions"], np.float32)
    if not np.isfinite(value).all():
        raise UnsupportedModelError(f"tree {number} has a threshold or a leaf that is no finite number")
    return Tree(
        value=value,
        left=np.array(tree["left_children"], np.int32),
        right=np.array(tree["right_children"], np.int32),
        feature=np.array(tree["split_indices"], np.int32),
        missing_left=np.array(tree["default_left"], np.bool_),
    )
