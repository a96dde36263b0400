"""Multi-task SAC for Stable-Baselines3 that trains any network of dynroute."""

try:
    import safetensors as safetensors
    import stable_baselines3 as stable_baselines3
except ImportError as error:
    raise ImportError("dynroute_sb3 needs Stable-Baselines3; type: pip install 'dynroute[sb3]'") from error

from .callbacks import CheckpointDirectory, PlasticityLogger
from .checkpoint import latest_checkpoint
from .demonstrations import DemonstrationBuffer, add_demonstrations
from .growth import GrowOnDemand
from .observation import OneHotTask, TaskSpace
from .on_policy import MultiTaskActorCriticPolicy
from .overlap import OverlappedSAC
from .plasticity import critic_plasticity
from .points import PointTask, point_tasks
from .policies import (
    BRCPolicy,
    CAREPolicy,
    D2RPolicy,
    HardRoutingPolicy,
    MlpPolicy,
    MoEPolicy,
    MultiHeadPolicy,
    MultiTaskPolicy,
    PaCoPolicy,
    ScaleMoEPolicy,
    SoftModularPolicy,
)
from .replay import RouteReplayBuffer, RouteReplaySamples
from .sac import MultiTaskSAC
from .storage import DamagedError
from .task_policy import TaskPolicy, extract_policy
from .vec_normalize import MultiTaskVecNormalize

__all__ = [
    "BRCPolicy",
    "CAREPolicy",
    "CheckpointDirectory",
    "D2RPolicy",
    "DamagedError",
    "DemonstrationBuffer",
    "GrowOnDemand",
    "HardRoutingPolicy",
    "MlpPolicy",
    "MoEPolicy",
    "MultiHeadPolicy",
    "MultiTaskActorCriticPolicy",
    "MultiTaskPolicy",
    "MultiTaskSAC",
    "MultiTaskVecNormalize",
    "OneHotTask",
    "OverlappedSAC",
    "PaCoPolicy",
    "PlasticityLogger",
    "PointTask",
    "RouteReplayBuffer",
    "RouteReplaySamples",
    "ScaleMoEPolicy",
    "SoftModularPolicy",
    "TaskPolicy",
    "TaskSpace",
    "add_demonstrations",
    "critic_plasticity",
    "extract_policy",
    "latest_checkpoint",
    "point_tasks",
]
