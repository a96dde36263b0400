"""The attributes of MultiTaskSAC as a base class, so that its parts need not import it."""

from typing import Any, ClassVar

from stable_baselines3 import SAC
from torch import Tensor

from .actor import MultiTaskActor
from .critic import MultiTaskCritic
from .policies import MultiTaskPolicy
from .replay import RouteReplayBuffer
from .returns import ReturnBounds

__all__ = ["MultiTaskAttributes", "MultiTaskOptions"]


class MultiTaskOptions:
    """The options that :class:`dynroute_sb3.MultiTaskSAC` adds to those of SAC; a checkpoint stores all of them.

    Example:
        >>> from dynroute_sb3.attributes import MultiTaskOptions
        >>> "task_weights" in MultiTaskOptions.__annotations__
        True
    """

    num_tasks: int | None
    task_names: list[str] | None
    ent_coef_lr: float | None
    max_ent_coef: float | None
    task_weights: str
    max_task_loss: float | None
    max_grad_norm: float | None
    reward_scale: float
    critic_loss: str
    bins: int
    value_range: tuple[float, float]
    q_target: str
    normalize_returns: bool
    shared_ent_coef: bool
    ent_coef_beta1: float
    actor_starts: int
    demonstration_weight: float
    demonstration_decay: int | None
    route_balance: float
    actor_paths: str | None
    critic_paths: str
    route_temperature: float | str
    precision: str
    capture: bool
    compile_networks: bool | str
    joint_update: bool
    ent_coef_after_step: bool
    max_ent_coef_grad_norm: float | None
    mask_rule: str
    shared_lr: float | None
    router_lr: float | None
    log_prob_epsilon: float
    warmup_actions: str
    lag_rollouts: bool


class MultiTaskAttributes(MultiTaskOptions, SAC):
    """The attributes of :class:`dynroute_sb3.MultiTaskSAC`, which documents and sets them.

    Example:
        >>> from dynroute_sb3.attributes import MultiTaskAttributes
        >>> issubclass(MultiTaskSAC, MultiTaskAttributes)
        True
    """

    overlaps: ClassVar[bool] = False
    """Whether the model learns while environments step, as :class:`dynroute_sb3.OverlappedSAC` does."""

    policy: MultiTaskPolicy
    actor: MultiTaskActor  # type: ignore[assignment]
    critic: MultiTaskCritic  # type: ignore[assignment]
    critic_target: MultiTaskCritic  # type: ignore[assignment]
    replay_buffer: RouteReplayBuffer | None
    n_steps: int

    rollout_actor: MultiTaskActor | None
    return_bounds: ReturnBounds | None
    report: Any
    _step_pending: bool
    _has_router_group: bool
    _made_with: dict[str, Any]

    @property
    def replays_paths(self) -> bool:
        """Whether paths are stored and replayed."""
        return "replayed" in (self.actor_paths, self.critic_paths)

    @property
    def entropy_coefficients(self) -> Tensor:
        """The entropy coefficient of each task, without a gradient."""
        assert self.num_tasks is not None
        if self.log_ent_coef is not None:
            return self.log_ent_coef.detach().exp().expand(self.num_tasks)
        return self.ent_coef_tensor.expand(self.num_tasks)
