"""Meta-World environments on top of dynroute_sb3."""

try:
    import metaworld as metaworld
    import stable_baselines3 as stable_baselines3
except ImportError as error:
    raise ImportError("dynroute_metaworld needs Meta-World; type: pip install 'dynroute[metaworld]'") from error

from .tasks import BENCHMARKS, task_names
from .vec_env import MetaWorldVecEnv, make_envs
from .workers import WorkerError

__all__ = ["BENCHMARKS", "MetaWorldVecEnv", "WorkerError", "make_envs", "task_names"]
