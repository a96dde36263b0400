"""Multi-task SAC as a Stable-Baselines3 algorithm."""

import copy
import dataclasses
import io
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray
from stable_baselines3 import SAC
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, RolloutReturn, Schedule
from stable_baselines3.common.utils import update_learning_rate
from stable_baselines3.common.vec_env import VecEnv

from . import captured
from .archive import saved_attributes
from .attributes import MultiTaskAttributes
from .categorical import VALUE_RANGE
from .checkpoint import load_buffer, load_checkpoint, save_buffer, save_checkpoint
from .demonstrations import DemonstrationBuffer, add_returns
from .denormals import CLEAR_EVERY, clear_denormals
from .losses import path_temperature
from .observation import check_observation_space, count_tasks
from .options import (
    BINS,
    check_buffer_is_there,
    check_fixed,
    check_keywords,
    check_network_options,
    check_normalization,
    check_options,
    check_parts,
    check_policy_name,
    check_precision,
    check_replaced,
    fixed_options,
    keywords_of,
    n_step_keywords,
    read_numbers,
    read_steps,
    read_target_entropy,
)
from .policies import POLICIES, MultiTaskPolicy
from .replay import RouteReplayBuffer
from .report import Report
from .returns import ReturnBounds
from .router_rates import separate_routers, set_router_rate
from .update import Coefficients, Networks, follow, update

__all__ = ["MultiTaskSAC"]


class MultiTaskSAC(MultiTaskAttributes):
    r"""SAC for several tasks, with one policy and an entropy coefficient for each task.

    .. math:: J(\phi) = \frac{1}{|K|} \sum_{\mathcal T \in K} w_{\mathcal T} \;
              \mathbb E_{s, d \sim \mathcal D_{\mathcal T}} \bigl[ \alpha_{\mathcal T} \log \pi_\phi(a | s, d)
              - \min_i Q_i(s, a) \bigr]

    where :math:`d` is the path of the behaviour policy (Eq. 8) and :math:`K` are the tasks that are not left out. It
    has the methods of SB3's SAC and takes its keywords beside those below.

    Args:
        policy: A name of :data:`dynroute_sb3.policies.POLICIES`, or a :class:`MultiTaskPolicy`.
        env: Environments whose observations end with the one-hot of the task, any number for each task.
        num_tasks: The number of tasks; default: the attribute `num_tasks` of the environments.
        task_names: The names of the tasks in the log; default: their numbers.
        batch_size: The batch size, a multiple of the number of tasks if the replay buffer is balanced; default: 128 for
            each task.
        ent_coef_lr: The learning rate of the entropy coefficients; default: the networks'. It does not apply to a
            coefficient that is a number.
        ent_coef_beta1: The decay of the first moment in the optimizer of the entropy coefficients; 0.5 in BRC.
        shared_ent_coef: Whether all tasks share one entropy coefficient, as in BRC.
        max_ent_coef: The largest entropy coefficient that is learned; no limit if None. It does not apply to a
            coefficient that is a number.
        task_weights: The rule for the weights of tasks, one of :data:`dynroute_sb3.losses.TASK_WEIGHTS`; Eq. 15 is
            "alpha-sum", the released code has "inverse-alpha-mean".
        max_task_loss: A task with a larger loss of critics or actor is left out of the update, and networks that can
            reinitialize the parameters of a task do so (PaCo); no limit if None.
        max_grad_norm: The norm to which the gradient of each network is clipped; no clipping if None.
        reward_scale: The factor of rewards in updates.
        critic_loss: "mse" for critics that predict values, "categorical" for critics that predict distributions of
            values over bins, by cross-entropy (:mod:`dynroute_sb3.categorical`). The actor uses their expectations.
        bins: The number of bins.
        value_range: The values of the first bin and of the last. Targets outside of it count as the outermost bin; the
            log has their share under ``outside_range``.
        q_target: The rule that combines the critics, for their target and for the actor: "min" for the smallest value,
            or the distribution with the smallest expectation; "mean" for the mean of values or probabilities.
        normalize_returns: Whether updates divide the rewards of each task, after `reward_scale`, so that its extreme
            returns lie in the value range (:func:`dynroute_sb3.losses.return_scale`, :mod:`dynroute_sb3.returns`).
        n_steps: The number of steps of n-step returns, from which the critics bootstrap
            (:mod:`dynroute_sb3.multi_step`).
        actor_starts: The number of updates in which only the critics learn.
        demonstration_weight: The weight, in the actor's loss, of the squared distance from its mean actions to those of
            demonstrations in a :class:`DemonstrationBuffer`, times the mean absolute value of the task.
        demonstration_decay: The number of the actor's updates over which that weight falls to 0; constant if None.
        route_balance: The weight of the loss that makes the sources of routes equally frequent in a batch
            (:func:`dynroute.losses.load_balance`), for those of actor and critics whose gate chooses.
        actor_paths: The paths of the actor's loss: "replayed" for those stored with the transitions (Eq. 8), "sampled"
            for new ones, "topk" for the best. Default: "replayed" for the gates TopK and SampleK, else "topk".
        critic_paths: The same for the values that the critics learn; all other actions and values use the best paths.
        route_temperature: The temperature of path sampling: "inverse-alpha-sum" for Eq. 14, "inverse-alpha-mean" for
            the released form with a mean of 1 over the tasks, or a constant.
        compile_networks: Whether to compile the networks by torch.compile, or the name of its backend.
        precision: "bf16" for matrix products in bfloat16 in updates. Parameters, optimizers, losses, targets,
            log-probabilities and rollouts stay in float32.
        joint_update: Whether all losses are computed before any step, as in released code. If not, coefficients,
            critics and actor step one after another, as in SB3.
        ent_coef_after_step: Whether the losses of critics and actor use the entropy coefficients after their step, as
            in the release of Soft Modularization.
        max_ent_coef_grad_norm: The norm to which the gradient of the logarithms of the entropy coefficients is clipped;
            no clipping if None.
        mask_rule: The rule by which `max_task_loss` leaves out tasks, one of :data:`dynroute_sb3.losses.MASK_RULES`;
            "total" is the released code and needs `joint_update`.
        shared_lr: The learning rate of the parameters that actor and critics share, such as the table of PaCo; default:
            the networks'.
        router_lr: The learning rate of routers; default: the rate of the other parameters.
        log_prob_epsilon: The epsilon inside the logarithm of 1 - a²; with 0 the logarithm is exact, released code has
            1e-6.
        warmup_actions: The actions before learning starts: "random" for uniform noise, "policy" for the untrained
            policy along sampled routes, as in released code.
        lag_rollouts: Whether rollouts use the policy before the last updates, as if another process collected them
            meanwhile; the released code with ``train_freq=200, gradient_steps=200``.
        replay_buffer_kwargs: Keywords of :class:`RouteReplayBuffer`, for instance ``{"memory_map": folder}``, or
            ``{"balanced": False}`` for batches that are drawn from all tasks.
        sac: The keywords of :class:`stable_baselines3.SAC`. Its `target_entropy` may also be "auto_0.5" for half of
            "auto", which is minus the number of actions.

    Example:
        >>> env = make_vec_env(lambda: OneHotTask(gym.make("Pendulum-v1"), 0, 2), n_envs=1)
        >>> model = MultiTaskSAC("D2RPolicy", env, policy_kwargs={"network_kwargs": {"num_modules": 4, "width": 16}})
        >>> model.actor.net.describe()
        'DynamicDepthRouting (module level): 341,484 parameters, 5 nodes, 10 routed edges, SampleK(2), rsg'
    """

    capture: bool = True
    """Whether updates on a GPU run as CUDA graphs if possible, see :mod:`dynroute_sb3.captured`."""

    growth_state: dict[str, Any] | None = None
    """The state of :class:`GrowOnDemand`; None without it."""

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = dict(POLICIES)

    def __init__(
        self,
        policy: str | type[MultiTaskPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 3e-4,
        *,
        num_tasks: int | None = None,
        task_names: Sequence[str] | None = None,
        batch_size: int | None = None,
        ent_coef_lr: float | None = None,
        ent_coef_beta1: float = 0.9,
        shared_ent_coef: bool = False,
        max_ent_coef: float | None = None,
        task_weights: str = "none",
        max_task_loss: float | None = None,
        max_grad_norm: float | None = None,
        reward_scale: float = 1.0,
        critic_loss: str = "mse",
        bins: int = BINS,
        value_range: tuple[float, float] = VALUE_RANGE,
        q_target: str = "min",
        normalize_returns: bool = False,
        n_steps: int = 1,
        actor_starts: int = 0,
        demonstration_weight: float = 0.0,
        demonstration_decay: int | None = None,
        route_balance: float = 0.0,
        actor_paths: str | None = None,
        critic_paths: str = "sampled",
        route_temperature: float | str = "inverse-alpha-sum",
        compile_networks: bool | str = False,
        precision: str = "float32",
        joint_update: bool = False,
        ent_coef_after_step: bool = False,
        max_ent_coef_grad_norm: float | None = None,
        mask_rule: str = "each",
        shared_lr: float | None = None,
        router_lr: float | None = None,
        log_prob_epsilon: float = 0.0,
        warmup_actions: str = "random",
        lag_rollouts: bool = False,
        policy_kwargs: dict[str, Any] | None = None,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        _init_setup_model: bool = True,
        **sac: Any,
    ) -> None:
        of_sac = keywords_of(SAC.__init__)
        if not sac.keys() <= of_sac:
            check_keywords(sac, of_sac | keywords_of(MultiTaskSAC.__init__), of=type(self).__name__)
        if (policy_kwargs or {}).get("use_sde"):
            sac["use_sde"] = True  # otherwise SB3 silently overwrites it in policy_kwargs
        super().__init__(
            policy,
            env,
            learning_rate,
            batch_size=batch_size,  # type: ignore[arg-type]
            policy_kwargs=dict(policy_kwargs or {}),
            replay_buffer_kwargs=dict(replay_buffer_kwargs or {}),
            n_steps=n_steps,
            _init_setup_model=False,
            **sac,
        )
        self.num_tasks = num_tasks
        self.task_names = task_names  # type: ignore[assignment]
        self.ent_coef_lr, self.max_ent_coef = ent_coef_lr, max_ent_coef
        self.ent_coef_beta1, self.shared_ent_coef = ent_coef_beta1, shared_ent_coef
        self.critic_loss, self.bins, self.value_range = critic_loss, bins, value_range
        self.q_target, self.normalize_returns = q_target, normalize_returns
        self.task_weights, self.reward_scale = task_weights, reward_scale
        self.max_task_loss, self.max_grad_norm = max_task_loss, max_grad_norm
        self.actor_starts = actor_starts
        self.demonstration_weight, self.demonstration_decay = demonstration_weight, demonstration_decay
        self.actor_paths, self.critic_paths, self.route_balance = actor_paths, critic_paths, route_balance
        self.route_temperature = route_temperature
        self.compile_networks, self.precision = compile_networks, precision
        self.joint_update, self.ent_coef_after_step = joint_update, ent_coef_after_step
        self.max_ent_coef_grad_norm, self.mask_rule = max_ent_coef_grad_norm, mask_rule
        self.shared_lr, self.router_lr, self.log_prob_epsilon = shared_lr, router_lr, log_prob_epsilon
        self.warmup_actions, self.lag_rollouts = warmup_actions, lag_rollouts
        self.rollout_actor = self.return_bounds = None
        self._behaviour_paths: NDArray[np.uint8] | None = None
        self._step_pending, self._logged_at, self._learning = False, -1, False
        self._warned_of_waiting = False
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        read_numbers(self)
        self.num_tasks = count_tasks(self.env, self.num_tasks, policy_kwargs=self.policy_kwargs)
        if self.task_names is None:
            self.task_names = [str(task) for task in range(self.num_tasks)]
        elif not isinstance(self.task_names, str):  # check_options refuses it
            self.task_names = list(self.task_names)
        if self.batch_size is None:
            self.batch_size = 128 * self.num_tasks
        check_options(self)
        if self.replay_buffer_class is None:
            self.replay_buffer_class = RouteReplayBuffer
        self.replay_buffer_kwargs["num_tasks"] = self.policy_kwargs["num_tasks"] = self.num_tasks
        if self.critic_loss == "categorical":
            self.policy_kwargs |= {"bins": self.bins, "value_range": self.value_range}
        self.target_entropy = read_target_entropy(self.target_entropy, self.action_space)
        given = self.replay_buffer_kwargs
        self.replay_buffer_kwargs = given | n_step_keywords(self)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="`n_steps=", category=UserWarning)  # RouteReplayBuffer has them
            super()._setup_model()
        self.replay_buffer_kwargs = given
        self._made_with = fixed_options(self)
        check_precision(self)

        check_network_options(self)
        assert self.replay_buffer is not None
        if self.replays_paths and self.policy.topology is not None:
            self.replay_buffer.keep_paths(self.policy.topology)
        if self.ent_coef_optimizer is not None:
            assert self.log_ent_coef is not None
            initial = self.log_ent_coef.detach().repeat(1 if self.shared_ent_coef else self.num_tasks)
            self.log_ent_coef = initial.clamp(max=math.log(self.max_ent_coef or math.inf)).requires_grad_()
            rate = self.ent_coef_lr or self.lr_schedule(1)
            betas = (self.ent_coef_beta1, 0.999)
            self.ent_coef_optimizer = torch.optim.Adam([self.log_ent_coef], lr=rate, betas=betas, fused=True)
        check_normalization(self)
        if self.normalize_returns:
            self.return_bounds = ReturnBounds(self.num_tasks, self.gamma, self.device)
        self._set_temperature()
        if self.shared_lr is not None and self.policy.shared_optimizer is not None:
            update_learning_rate(self.policy.shared_optimizer, self.shared_lr)
        self._has_router_group = self.router_lr is not None  # a group of a user may look like it
        if self.router_lr is not None:
            separate_routers(self.actor.optimizer, [self.actor.net], self.router_lr)
            separate_routers(self.critic.optimizer, self.critic.nets, self.router_lr)
        if self.lag_rollouts:
            self.rollout_actor = copy.deepcopy(self.actor).requires_grad_(False)
            self.rollout_actor.set_training_mode(False)
        if self.compile_networks:
            backend = "inductor" if self.compile_networks is True else self.compile_networks
            self.policy.compile_networks(backend)
            if self.rollout_actor is not None:
                self.rollout_actor.net.compile(backend=backend)
        self.report = Report(self.num_tasks, self._stats_window_size, self.device)
        self._graphs: captured.CapturedUpdate | None = None
        self._runs_eagerly = False

    def _set_temperature(self) -> None:
        """Sets the temperature of path sampling by the option; each update does so before its step."""
        coefficients = self.entropy_coefficients.to(self.actor.temperature.device)
        for actor in (self.actor, self.rollout_actor):
            if actor is not None:
                actor.temperature.copy_(path_temperature(self.route_temperature, coefficients))

    def _get_policy_from_name(self, policy_name: str) -> type[BasePolicy]:
        check_policy_name(policy_name, self.policy_aliases)
        return super()._get_policy_from_name(policy_name)

    @staticmethod
    def _wrap_env(env: GymEnv, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        if isinstance(env, VectorEnv):
            raise ValueError(
                f"`env` must be an environment or a VecEnv of SB3, got a {type(env).__name__} of gymnasium; "
                "make a DummyVecEnv or a SubprocVecEnv of the same functions."
            )
        wrapped = SAC._wrap_env(env, verbose, monitor_wrapper)
        check_observation_space(wrapped.observation_space)  # SB3 would advise a MultiInputPolicy
        return wrapped

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        kept = {name: getattr(self, name) for name in ("env", "_vec_normalize_env", "n_envs", "_last_obs")}
        try:
            super().set_env(env, force_reset)
            check_options(self)
            check_normalization(self)
            count_tasks(self.env, self.num_tasks, policy_kwargs=self.policy_kwargs)
        except Exception:
            vars(self).update(kept)
            raise

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        assert isinstance(self._last_obs, np.ndarray)
        name = f"at step {self.num_timesteps}, an observation of the environments"
        self.policy.task_space.check(self._last_obs, name=name)
        self._step_pending = True
        at_random = self.num_timesteps < learning_starts and self.warmup_actions == "random"
        # Before the first update the actor itself acts, so loaded parameters take effect at once.
        actor = self.rollout_actor if self.rollout_actor is not None and self._n_updates else self.actor
        self._behaviour_paths = None
        if self.replays_paths or not at_random:
            with torch.no_grad():
                observations = torch.tensor(
                    self._last_obs, device=self.device
                )  # a copy has aligned, reproducible memory
                drawn, route = actor.act(observations, deterministic=False)
            if self.replays_paths and route is not None and self.policy.topology is not None:
                self._behaviour_paths = self.policy.topology.pack(route.path).cpu().numpy()
        if at_random:
            scaled = self.policy.scale_action(np.array([self.action_space.sample() for _ in range(n_envs)]))
        else:
            scaled = drawn.cpu().numpy().reshape(-1, *self.action_space.shape)  # type: ignore[misc]
        if action_noise is not None:
            scaled = np.clip(scaled + action_noise(), -1, 1)
        return self.policy.unscale_action(scaled), scaled

    def _store_transition(
        self,
        replay_buffer: ReplayBuffer,
        buffer_action: NDArray[Any],
        new_obs: NDArray[Any] | dict[str, NDArray[Any]],
        reward: NDArray[Any],
        dones: NDArray[Any],
        infos: list[dict[str, Any]],
    ) -> None:
        before, original, normalizer = self._last_obs, new_obs, self._vec_normalize_env
        if normalizer is not None:  # the buffer stores unnormalized values
            reward = normalizer.get_original_reward()
            before, original = self._last_original_obs, normalizer.get_original_obs()
        assert isinstance(replay_buffer, RouteReplayBuffer)
        assert isinstance(before, np.ndarray)
        assert isinstance(original, np.ndarray)
        after = original.copy()
        for i in np.flatnonzero(dones):  # new_obs is the first observation of the next episode
            last = infos[i].get("terminal_observation")
            if last is not None:
                after[i] = last if normalizer is None else normalizer.unnormalize_obs(last)
        self._step_pending = False
        self._last_obs = None  # if the buffer refuses the step, episodes start again
        replay_buffer.add(before, after, buffer_action, reward, dones, infos, paths=self._behaviour_paths)
        if self.return_bounds is not None:
            tasks = self.policy.task_space.tasks(before)
            truncated = replay_buffer.truncated(dones, infos)
            self.return_bounds.add(tasks, np.asarray(reward), np.asarray(dones, dtype=bool), truncated)
        self._last_obs = new_obs
        if normalizer is not None:
            self._last_original_obs = original

    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 4,
        tb_log_name: str = "MultiTaskSAC",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        total_timesteps = read_steps("total_timesteps", total_timesteps)
        self._warned_of_waiting = False
        self._logged_at, self._learning = -1, True  # another learn() may have had the same step numbers
        try:
            super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)
        finally:
            self._learning = False
            if self._step_pending:  # an exception, such as Ctrl-C, broke a step off, so episodes start again
                self._step_pending, self._last_obs = False, None
        self.report.record_updates(self)
        return self

    def _setup_learn(
        self, total_timesteps: int, callback: MaybeCallback = None, reset_num_timesteps: bool = True, *args: Any
    ) -> tuple[int, BaseCallback]:
        check_buffer_is_there(self)
        if self.return_bounds is not None and (reset_num_timesteps or self._last_obs is None):
            self.return_bounds.forget_running()  # SB3 starts new episodes
        return super()._setup_learn(total_timesteps, callback, reset_num_timesteps, *args)

    def collect_rollouts(self, env: VecEnv, callback: BaseCallback, *args: Any, **kwargs: Any) -> RolloutReturn:
        rollout = super().collect_rollouts(env, callback, *args, **kwargs)
        if self._step_pending:  # a callback ended the rollout before the step was stored
            step = callback.locals
            self._update_info_buffer(step["infos"], step["dones"])
            parts = ("replay_buffer", "buffer_actions", "new_obs", "rewards", "dones", "infos")
            self._store_transition(*(step[part] for part in parts))
        return rollout

    def _update_learning_rate(self, optimizers: list[torch.optim.Optimizer] | torch.optim.Optimizer) -> None:
        super()._update_learning_rate(optimizers)
        if self.router_lr is not None:
            for optimizer in (self.actor.optimizer, self.critic.optimizer):
                set_router_rate(optimizer, self.router_lr)

    def train(self, gradient_steps: int, batch_size: int | None = None) -> None:
        batch_size = self.batch_size if batch_size is None else batch_size
        check_precision(self)
        check_buffer_is_there(self)
        check_fixed(self)
        self.policy.set_training_mode(True)
        optimizers = [self.actor.optimizer, self.critic.optimizer]
        for optimizer, rate in (
            (self.policy.shared_optimizer, self.shared_lr),
            (self.ent_coef_optimizer, self.ent_coef_lr),
        ):
            if optimizer is not None and rate is None:
                optimizers.append(optimizer)
            elif optimizer is not None and rate is not None:
                update_learning_rate(optimizer, rate)
        self._update_learning_rate(optimizers)

        if self._waits_for_tasks():
            return
        if self.return_bounds is not None:
            self.return_bounds.update()
        if self.rollout_actor is not None:
            self.rollout_actor.load_state_dict(self.actor.state_dict())
        for _ in range(gradient_steps):
            self._update(batch_size, self.tau if self._n_updates % self.target_update_interval == 0 else None)
            self._n_updates += 1
            if self._n_updates % CLEAR_EVERY == 0:
                clear_denormals(self.actor.optimizer, self.critic.optimizer, self.policy.shared_optimizer)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        if not self._learning:  # learn() reads values only when it logs them
            self.report.record_updates(self)

    def _update(self, batch_size: int, tau: float | None) -> None:
        """Updates the networks once, and the targets by a fraction unless it is None."""
        assert self.replay_buffer is not None
        if (graphs := self._captured_update()) is not None:
            try:
                graphs(self._coefficients(), batch_size, tau)
                return
            except captured.CaptureError as error:  # nothing has changed
                self._leave_capture(str(error))
        batch = self.replay_buffer.sample(batch_size, env=self._vec_normalize_env)
        self.report.add(update(batch, self._networks(), self._coefficients()))
        if tau is not None:
            follow(self.critic_target, self.critic, tau)

    def _captured_update(self) -> captured.CapturedUpdate | None:
        """The update as CUDA graphs; None if it runs eagerly."""
        if not self.capture or self._runs_eagerly or self.device.type != captured.CAPTURING_DEVICE:
            return None
        if (why := captured.obstacle(self)) is not None:
            self._leave_capture(why)
            return None
        assert self.replay_buffer is not None
        if self._graphs is None or self._graphs.replay.buffer is not self.replay_buffer:
            self._graphs = None  # frees the copy of the old buffer
            try:
                self._graphs = captured.CapturedUpdate(self._networks(), self.replay_buffer, self.report, self.device)
            except torch.OutOfMemoryError:
                self._leave_capture("the device has no memory for a copy of the replay buffer")
        if self._graphs is not None and self.log_ent_coef is None:  # a callback may have changed it
            self._graphs.networks.log_alpha.copy_(self.entropy_coefficients.log())
        return self._graphs

    def _leave_capture(self, why: str) -> None:
        warnings.warn(f"updates run one operation at a time, not as a CUDA graph: {why}.", stacklevel=2)
        self._runs_eagerly, self._graphs = True, None

    def _networks(self) -> Networks:
        """The parts of the model for an update."""
        log_alpha = self.entropy_coefficients.log() if self.log_ent_coef is None else self.log_ent_coef
        shared = self.policy.shared_optimizer
        bounds = None if self.return_bounds is None else self.return_bounds.update()
        return Networks(self.actor, self.critic, self.critic_target, log_alpha, self.ent_coef_optimizer, shared, bounds)

    def _coefficients(self) -> Coefficients:
        """The settings of the next update."""
        weight, learned = self.demonstration_weight, self._n_updates - self.actor_starts
        if self.demonstration_decay is not None:
            weight *= min(max(1 - learned / self.demonstration_decay, 0), 1)
        computed = {
            "target_entropy": read_target_entropy(self.target_entropy, self.action_space),
            "actor_learns": learned >= 0,
        }
        names = (field.name for field in dataclasses.fields(Coefficients))
        options: dict[str, Any] = {name: getattr(self, name) for name in names if name not in computed}
        return Coefficients(**{**options, **computed, "demonstration_weight": weight})

    def _waits_for_tasks(self) -> bool:
        """Whether some tasks have no transitions yet, for instance if an environment changes its task each episode."""
        assert self.replay_buffer is not None
        if not self.replay_buffer.balanced:
            return False
        missing = np.flatnonzero(self.replay_buffer.counts == 0)
        if not len(missing) or not self.replay_buffer.size():  # sampling from an empty buffer raises an error
            return False
        if not self._warned_of_waiting:
            self._warned_of_waiting = True
            assert self.task_names is not None
            warnings.warn(
                f"learning waits until every task has transitions, at step {self.num_timesteps} the tasks "
                f"{[self.task_names[task] for task in missing]} have none; updates that are left out are not made up "
                "for. Raise `learning_starts`, or see that some environment takes these tasks.",
                stacklevel=2,
            )
        return True

    def _update_info_buffer(self, infos: list[dict[str, Any]], dones: NDArray[Any] | None = None) -> None:
        super()._update_info_buffer(infos, dones)
        if ended := [i for i, info in enumerate(infos) if "episode" in info]:
            assert isinstance(self._last_obs, np.ndarray)
            tasks = self.policy.task_space.tasks(self._last_obs)
            for i in ended:
                self.report.add_episode(tasks[i], infos[i])

    def dump_logs(self) -> None:
        if self._logged_at != self.num_timesteps:  # episodes of several tasks may end at the same step
            self._logged_at = self.num_timesteps
            self.report.log(self)
            super().dump_logs()

    def save_replay_buffer(self, path: str | Path | io.BufferedIOBase) -> None:
        """Writes the replay buffer to a file without pickle.

        Args:
            path: The name of the file, or a file object. Unlike SB3, it does not add ".pkl" to the name.
        """
        if self.replay_buffer is None:
            raise ValueError("`replay_buffer` must be there to be saved, got None; load_replay_buffer() makes one.")
        save_buffer(self.replay_buffer, path)

    def load_replay_buffer(self, path: str | Path | io.BufferedIOBase, truncate_last_traj: bool = True) -> None:
        """Reads a file of :meth:`save_replay_buffer`, which cannot run code, and makes a buffer if there is none.

        With `normalize_returns`, rewards are then normalized by the episodes of the file too.

        Args:
            path: The name of the file, or a file object.
            truncate_last_traj: Has no effect; SB3 uses it for HerReplayBuffer only.
        """
        buffer = self._make_replay_buffer() if self.replay_buffer is None else self.replay_buffer
        load_buffer(buffer, path)
        if self.replay_buffer is None:
            self._made_with["replay_buffer_kwargs"] = dict(self.replay_buffer_kwargs)
        self.replay_buffer = buffer
        if self.return_bounds is not None:
            self.return_bounds.add_buffer(buffer)
            if isinstance(buffer, DemonstrationBuffer):
                add_returns(self.return_bounds, buffer)

    def _make_replay_buffer(self) -> RouteReplayBuffer:
        assert self.replay_buffer_class is not None
        buffer = self.replay_buffer_class(
            self.buffer_size,
            self.observation_space,
            self.action_space,
            device=self.device,
            n_envs=self.n_envs,
            optimize_memory_usage=self.optimize_memory_usage,
            **(self.replay_buffer_kwargs | n_step_keywords(self)),
        )
        assert isinstance(buffer, RouteReplayBuffer)
        if self.replays_paths and self.policy.topology is not None:
            buffer.keep_paths(self.policy.topology)
        return buffer

    def save_checkpoint(self, folder: str | Path, notes: Mapping[str, Any] | None = None) -> None:
        """Writes everything that training depends on to a new folder, atomically.

        Attributes that a subclass adds are not stored, and a warning names them: set them after
        :meth:`load_checkpoint`, which makes the model without them, or use SB3's ``save``, which pickles them. The same
        holds for a replay buffer of your own, unless its class overrides `save` and `load`.

        Args:
            folder: The folder.
            notes: Plain data to store beside it, in ``notes.json``.
        """
        save_checkpoint(self, Path(folder), notes)

    @classmethod
    def load_checkpoint(
        cls,
        folder: str | Path | None,
        env: GymEnv | None = None,
        device: torch.device | str = "auto",
        replace: Mapping[str, Any] | None = None,
    ) -> Self:
        """Restores a model from a checkpoint, to resume training exactly; no code of the folder runs.

        Args:
            folder: A folder of :meth:`save_checkpoint`; None, of :func:`~dynroute_sb3.latest_checkpoint`, is refused.
            env: The environments, as many as before; without them the model can only predict, and has no replay buffer.
            device: The device of the networks.
            replace: Options that cannot be stored, such as a learning rate that is a function:
                ``{"learning_rate": f}``, and those that do not change results, such as
                ``{"replay_buffer_kwargs": {"memory_map": folder}}``.
        """
        if not isinstance(folder, str | Path):
            raise TypeError(
                f"`folder` must be a path, got {folder!r}; latest_checkpoint returns None if a folder has none."
            )
        return load_checkpoint(cls, Path(folder), env, device, replace or {})

    @classmethod
    def load(cls, path: str | Path | io.BufferedIOBase, *args: Any, **kwargs: Any) -> Self:
        """Loads a file of `save`, as in SB3.

        Args:
            path: The name of the file, or a file object.
            args: As in SB3, the environments first.
            kwargs: As in SB3; options of the model replace those of the file. Those that its networks depend on must
                stay, such as `critic_loss`, `bins` and `value_range` of critics that learn distributions.
        """
        known = keywords_of(cls.__init__, MultiTaskSAC.__init__, SAC.__init__, SAC.load) | {"replay_buffer"}
        known |= {name for name in dir(cls) if not callable(getattr(cls, name))}
        saved = saved_attributes(path) if kwargs else {}
        check_keywords(kwargs, {*known, *saved}, of=f"{cls.__name__} and not an attribute of the model")
        check_replaced(kwargs, saved)
        given = {*kwargs, *((args[2] if args[2:] else kwargs.get("custom_objects")) or {})}
        if "stats_window_size" in kwargs:
            kwargs["_stats_window_size"] = kwargs.pop("stats_window_size")  # the name of the attribute
        model = super().load(path, *args, **kwargs)
        due = 0 if cls.overlaps else vars(model).pop("updates_due", 0)
        if due:
            warnings.warn(
                f"the updates that were due ({due}) are dropped, since a {cls.__name__} does not learn while "
                "environments step; OverlappedSAC.load keeps them.",
                stacklevel=2,
            )
        if model.ent_coef_optimizer is None and "ent_coef" in given:  # a callback may have changed the stored one
            model.ent_coef_tensor.fill_(float(model.ent_coef))
        if "route_temperature" in given:
            model._set_temperature()
        if model.ent_coef_optimizer is not None and model.log_ent_coef is not None:
            count = 1 if model.shared_ent_coef else model.entropy_coefficients.numel()
            if model.log_ent_coef.numel() != count:
                raise ValueError(
                    f"`shared_ent_coef` must stay {not model.shared_ent_coef}, with which the model was saved, got "
                    f"{model.shared_ent_coef}; make another model."
                )
            for group in model.ent_coef_optimizer.param_groups:  # its stored state has that of the saved model
                group["betas"] = (model.ent_coef_beta1, 0.999)
        return model

    def set_parameters(
        self, load_path_or_dict: str | dict[str, Any], exact_match: bool = True, device: torch.device | str = "auto"
    ) -> None:
        """Sets the parameters of networks and optimizers, as in SB3.

        Args:
            load_path_or_dict: A file of `save`, or what `get_parameters` returned.
            exact_match: Whether every part must be given.
            device: The device to read a file to.
        """
        if not isinstance(load_path_or_dict, dict):
            _, load_path_or_dict, _ = load_from_zip_file(load_path_or_dict, device=device, load_data=False)
        check_parts(self, load_path_or_dict, exact_match=exact_match)
        running = None if self.return_bounds is None else self.return_bounds.running
        super().set_parameters(load_path_or_dict, exact_match, device)
        if self.return_bounds is not None and (running or self._last_obs is None):
            self.return_bounds.running = running or []  # the episodes of its own environments

    def _excluded_save_params(self) -> list[str]:
        kept_apart = ("report", "rollout_actor", "return_bounds")
        passing = (
            "_behaviour_paths",
            "_has_router_group",
            "_made_with",
            "_learning",
            "_step_pending",
            "_graphs",
            "_runs_eagerly",
        )
        return [*super()._excluded_save_params(), *kept_apart, *passing]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        states, tensors = super()._get_torch_save_params()
        parts = {
            "policy.shared_optimizer": self.policy.shared_optimizer,
            "rollout_actor": self.rollout_actor,
            "return_bounds": self.return_bounds,
        }
        return [*states, *(name for name, part in parts.items() if part is not None)], tensors
