"""Meta-World for dynroute_sb3: environments, evaluation, runs, and the ``dynroute`` command."""

import importlib
import os
from typing import TYPE_CHECKING, Any

if os.environ.get("MUJOCO_GL", "").strip().lower() == "osmesa":
    # MuJoCo loads libOSMesa when it is imported. Triton, which torch imports with the first optimizer, crashes the
    # process if it is loaded after that library, and not before it.
    importlib.import_module("torch._dynamo")
try:
    import metaworld as metaworld
    import stable_baselines3 as stable_baselines3
except ImportError as error:
    raise ImportError("dynroute_metaworld needs Meta-World; type: pip install 'dynroute[metaworld]'") from error
except (AttributeError, RuntimeError) as error:  # MuJoCo raises these if the library of MUJOCO_GL is missing
    if "MUJOCO_GL" not in os.environ:
        raise
    raise ImportError(
        f"dynroute_metaworld cannot draw with MUJOCO_GL={os.environ['MUJOCO_GL']}; install the library (libosmesa6 "
        "for osmesa, libegl1 for egl) or unset MUJOCO_GL, which only drawing needs."
    ) from error

from dynroute_command.choices import BENCHMARKS, task_names

from .envs.descriptions import task_descriptions
from .envs.scripted import ScriptedPolicy
from .envs.vec_env import MetaWorldVecEnv, make_envs
from .envs.workers import WorkerError
from .imitation.collection import collect
from .imitation.demonstrations import Demonstrations
from .runs.configuration import Configuration
from .runs.evaluation import evaluate
from .runs.intervals import bootstrap_interval, iqm, wilson_interval
from .runs.metrics import read_metrics
from .runs.presets import PRESETS, preset
from .runs.result import EvaluationResult
from .runs.run import Run, RunError
from .runs.summary import summarize
from .runs.sweeps import sweep
from .runs.training import load_model, train

if TYPE_CHECKING:
    from .report import analyze, render, write_report

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
    "preset",
    "read_metrics",
    "render",
    "summarize",
    "sweep",
    "task_descriptions",
    "task_names",
    "train",
    "wilson_interval",
    "write_report",
]

if not TYPE_CHECKING:  # otherwise a type checker accepts any name

    def __getattr__(name: str) -> Any:
        """Imports the reports when one is first asked for; training needs none."""
        if name not in ("analyze", "render", "write_report"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value = getattr(importlib.import_module(".report", __name__), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
