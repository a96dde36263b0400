"""Meta-World for dynroute_sb3: environments, evaluation, runs, and the ``dynroute`` command."""

import os

try:
    import stable_baselines3 as stable_baselines3

    import metaworld as metaworld
except ImportError as error:
    raise ImportError("dynroute_metaworld needs Meta-World; type: pip install 'dynroute[metaworld]'") from error
except (AttributeError, RuntimeError) as error:  # so MuJoCo fails where the library that MUJOCO_GL names is missing
    if "MUJOCO_GL" not in os.environ:
        raise
    raise ImportError(
        f"dynroute_metaworld cannot draw with MUJOCO_GL={os.environ['MUJOCO_GL']}; install the library (libosmesa6 "
        "for osmesa, libegl1 for egl) or unset MUJOCO_GL, which only drawing needs."
    ) from error

from .collection import collect
from .configuration import Configuration
from .demonstrations import Demonstrations
from .evaluation import evaluate
from .intervals import bootstrap_interval, iqm, wilson_interval
from .metrics import read_metrics
from .presets import PRESETS
from .result import EvaluationResult
from .run import Run, RunError
from .scripted import ScriptedPolicy
from .summary import summarize
from .sweeps import sweep
from .tasks import BENCHMARKS, task_names
from .training import load_model, train
from .vec_env import MetaWorldVecEnv, make_envs
from .views import analyze, render, report
from .workers import WorkerError

__all__ = [
    "BENCHMARKS",
    "PRESETS",
    "Configuration",
    "Demonstrations",
    "EvaluationResult",
    "MetaWorldVecEnv",
    "Run",
    "RunError",
    "ScriptedPolicy",
    "WorkerError",
    "analyze",
    "bootstrap_interval",
    "collect",
    "evaluate",
    "iqm",
    "load_model",
    "make_envs",
    "read_metrics",
    "render",
    "report",
    "summarize",
    "sweep",
    "task_names",
    "train",
    "wilson_interval",
]
