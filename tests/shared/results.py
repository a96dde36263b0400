"""Results of evaluations that tests make by hand."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dynroute_metaworld import EvaluationResult


def result_of(solved: Sequence[Sequence[bool]], **others: Any) -> EvaluationResult:
    """The evaluation of the tasks reach and push, with the success of each episode, and other fields by name."""
    success = np.array(solved)
    zeros = np.zeros(success.shape)
    usual: dict[str, Any] = {
        "benchmark": "reach, push",
        "tasks": ("reach", "push"),
        "goals": "random",
        "horizon": 20,
        "seed": 0,
        "reward_version": "v2",
        "criterion": "any",
        "versions": {},
        "first_success": np.where(success, 5, -1),
        "success_last": success,
        "returns": zeros,
        "lengths": zeros.astype(np.int64),
        "goal_positions": np.zeros((*success.shape, 3), np.float32),
        "modules_used": None,
    }
    return EvaluationResult(**{**usual, **others})
