"""Multi-task SAC as a Stable-Baselines3 algorithm."""

import copy
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
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, RolloutReturn, Schedule
from stable_baselines3.common.utils import update_learning_rate
from stable_baselines3.common.vec_env import VecEnv

from . import captured
from .attributes import MultiTaskAttributes
from .checkpoint import load_buffer, load_checkpoint, save_buffer, save_checkpoint
from .losses import path_temperature
from .observation import check_observation_space, count_tasks
from .options import (
    BINS,
    VALUE_RANGE,
    check_network_options,
    check_normalization,
    check_options,
    check_policy_name,
    check_precision,
    read_target_entropy,
)
from .policies import POLICIES, MultiTaskPolicy
from .replay import RouteReplayBuffer
from .report import Report
from .returns import ReturnBounds
from .update import Coefficients, Networks, follow, update

__all__ = ["MultiTaskSAC"]


class MultiTaskSAC(MultiTaskAttributes):
    r"""SAC for several tasks at once: one policy, one coefficient of entropy for each task.

    .. math:: J(\phi) = \frac{1}{|K|} \sum_{\mathcal T \in K} w_{\mathcal T} \;
              \mathbb E_{s, d \sim \mathcal D_{\mathcal T}} \big[ \alpha_{\mathcal T} \log \pi_\phi(a | s, d)
              - \min_i Q_i(s, a) \big]

    where :math:`d` is the path that the behaviour policy took (Eq. 8) and :math:`K` the tasks that are not left out. It
    learns, predicts, saves and loads as SB3's SAC, whose keywords it takes beside those below.

    Args:
        policy: A name of :data:`dynroute_sb3.policies.POLICIES`, or a :class:`MultiTaskPolicy`.
        env: Environments whose observations end with the one-hot of the task, any number for each task.
        num_tasks: The number of tasks; what the environments have as `num_tasks` if None.
        task_names: What to call the tasks in the log; their numbers if None.
        batch_size: The size of a batch, a multiple of the number of tasks unless the replay buffer is not balanced; 128
            for each task if None.
        ent_coef_lr: The learning rate of the coefficients of entropy; that of the networks if None.
        ent_coef_beta1: The decay of the first moment in the optimizer of the coefficients of entropy; .5 in BRC.
        shared_ent_coef: Whether all tasks have one coefficient of entropy, as in BRC, else each its own.
        max_ent_coef: The largest coefficient of entropy; no limit if None.
        task_weights: How the losses of tasks are weighed, a rule of :data:`dynroute_sb3.losses.TASK_WEIGHTS`; Eq. 15 is
            "alpha-sum", and the released code has "inverse-alpha-mean".
        max_task_loss: A task with a larger loss of critics or actor is left out of the update, and a network that can
            repair what belongs to that task does so (PaCo); never if None.
        max_grad_norm: The norm to which the gradient of each network is clipped; not at all if None.
        reward_scale: Multiplies rewards when they are learned from.
        critic_loss: "mse" for critics that predict values, "categorical" for critics that predict distributions of
            values over bins, by cross-entropy (:mod:`dynroute_sb3.categorical`). The actor sees their expectations.
        bins: The number of bins.
        value_range: The values of the first bin and of the last. What targets put outside of it counts as the outermost
            bin, and the log says how much that is, under ``outside_range``.
        q_target: How one value is made of those of the critics, for what they learn and for the actor: "min" for the
            smallest, or the distribution with the smallest expectation, "mean" for the mean of the values, or of the
            probabilities.
        normalize_returns: Whether rewards are divided, when they are learned from and task by task, by what leads the
            extreme returns so far into the value range (:func:`dynroute_sb3.losses.return_scale`,
            :mod:`dynroute_sb3.returns`). It comes after `reward_scale`.
        actor_starts: The number of updates in which the critics learn alone.
        demonstration_weight: The weight, in the actor's loss, of the squared distance of its mean actions to those of a
            :class:`DemonstrationBuffer`, times the mean absolute value of the task.
        demonstration_decay: The number of the actor's updates over which that weight falls to 0; it stays if None.
        actor_paths: Which paths the actor's loss takes: "replayed" for those stored with the transitions (Eq. 8),
            "sampled" for fresh ones, "topk" for the best. If None, "replayed" where the gate is TopK or SampleK.
        critic_paths: The same for the values that the critics learn; all other actions and values take the best.
        route_temperature: The temperature of path sampling, "inverse-alpha-sum" for Eq. 14, "inverse-alpha-mean" for
            its released form, whose mean over the tasks is 1, or a constant.
        compile_networks: Whether the networks are compiled by torch.compile, or the name of its backend.
        precision: "bf16" for networks that multiply in bfloat16 when they learn; parameters, optimizers, losses,
            targets and log-probabilities stay in float32, and so does all that acts.
        joint_update: Whether all losses come from the networks before, and then all step together, as in released code;
            else coefficients, critics and actor step one after another, as in SB3.
        ent_coef_after_step: Whether the losses of critics and actor take the coefficients of entropy as they are after
            their step, as in the release of Soft Modularization.
        max_ent_coef_grad_norm: The norm to which the gradient of the logarithms of the coefficients of entropy is
            clipped; not at all if None.
        mask_rule: How tasks that `max_task_loss` leaves out are found, a rule of
            :data:`dynroute_sb3.losses.MASK_RULES`; "total" is the released code, and needs `joint_update`.
        shared_lr: The learning rate of what actor and critics share, as the table of PaCo; that of the networks if
            None.
        log_prob_epsilon: What is added inside the logarithm of 1 - a²; the logarithm is exact if 0, and released code
            has 1e-6.
        warmup_actions: What acts until learning starts: "random" for uniform noise, "policy" for the untrained policy
            along sampled routes, as in released code.
        lag_rollouts: Whether rollouts take the policy as it was before the last updates, as where a process of its own
            collects the next rollout meanwhile; with ``train_freq=200, gradient_steps=200`` the released code.
        replay_buffer_kwargs: Keywords of :class:`RouteReplayBuffer`, for instance ``{"memory_map": folder}``, or
            ``{"balanced": False}`` for batches that are drawn over all tasks.
        sac: The keywords of :class:`stable_baselines3.SAC`. Its `target_entropy` may be "auto_0.5" too, for half of
            what "auto" is, which is minus the number of actions.

    Example:
        >>> env = make_vec_env(lambda: OneHotTask(gym.make("Pendulum-v1"), 0, 2), n_envs=1)
        >>> model = MultiTaskSAC("D2RPolicy", env, policy_kwargs={"network_kwargs": {"num_modules": 4, "width": 16}})
        >>> model.actor.net.describe()
        'DynamicDepthRouting (module level): 341,484 parameters, 5 nodes, 10 routed edges, SampleK(2), rsg'
    """

    capture: bool = True
    """Whether updates on a GPU run as CUDA graphs where they can; see :mod:`dynroute_sb3.captured`."""

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
        actor_starts: int = 0,
        demonstration_weight: float = 0.0,
        demonstration_decay: int | None = None,
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
        log_prob_epsilon: float = 0.0,
        warmup_actions: str = "random",
        lag_rollouts: bool = False,
        policy_kwargs: dict[str, Any] | None = None,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        _init_setup_model: bool = True,
        **sac: Any,
    ) -> None:
        if (policy_kwargs or {}).get("use_sde"):
            sac["use_sde"] = True  # or SB3 would put its own into policy_kwargs, and say nothing
        super().__init__(
            policy,
            env,
            learning_rate,
            batch_size=batch_size,  # type: ignore[arg-type]
            policy_kwargs=dict(policy_kwargs or {}),
            replay_buffer_kwargs=dict(replay_buffer_kwargs or {}),
            _init_setup_model=False,
            **sac,
        )
        self.num_tasks, self.task_names = num_tasks, None if task_names is None else list(task_names)
        self.ent_coef_lr, self.max_ent_coef = ent_coef_lr, max_ent_coef
        self.ent_coef_beta1, self.shared_ent_coef = ent_coef_beta1, shared_ent_coef
        self.critic_loss, self.bins, self.value_range = critic_loss, bins, value_range
        self.q_target, self.normalize_returns = q_target, normalize_returns
        self.task_weights, self.reward_scale = task_weights, reward_scale
        self.max_task_loss, self.max_grad_norm = max_task_loss, max_grad_norm
        self.actor_starts = actor_starts
        self.demonstration_weight, self.demonstration_decay = demonstration_weight, demonstration_decay
        self.actor_paths, self.critic_paths = actor_paths, critic_paths
        self.route_temperature = route_temperature
        self.compile_networks, self.precision = compile_networks, precision
        self.joint_update, self.ent_coef_after_step = joint_update, ent_coef_after_step
        self.max_ent_coef_grad_norm, self.mask_rule = max_ent_coef_grad_norm, mask_rule
        self.shared_lr, self.log_prob_epsilon = shared_lr, log_prob_epsilon
        self.warmup_actions, self.lag_rollouts = warmup_actions, lag_rollouts
        self.rollout_actor = self.return_bounds = None
        self._behaviour_paths: NDArray[np.uint8] | None = None
        self._step_pending, self._logged_at, self._learning = False, -1, False
        self._told_of_waiting = False
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        self.num_tasks = count_tasks(self.env, self.num_tasks, policy_kwargs=self.policy_kwargs)
        self.task_names = self.task_names or [str(task) for task in range(self.num_tasks)]
        self.batch_size = self.batch_size or 128 * self.num_tasks
        check_options(self)
        self.value_range = (self.value_range[0], self.value_range[1])  # a list, too, is a pair
        if self.replay_buffer_class is None:
            self.replay_buffer_class = RouteReplayBuffer
        self.replay_buffer_kwargs["num_tasks"] = self.policy_kwargs["num_tasks"] = self.num_tasks
        if self.critic_loss == "categorical":
            self.policy_kwargs |= {"bins": self.bins, "value_range": self.value_range}
        self.target_entropy = read_target_entropy(self.target_entropy, self.action_space)
        super()._setup_model()
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
        coefficients = self.entropy_coefficients.to(self.actor.temperature.device)
        self.actor.temperature.copy_(path_temperature(self.route_temperature, coefficients))
        if self.shared_lr is not None and self.policy.shared_optimizer is not None:
            update_learning_rate(self.policy.shared_optimizer, self.shared_lr)
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
        # Before the first update there is nothing to lag behind: parameters that were loaded act at once.
        actor = self.rollout_actor if self.rollout_actor is not None and self._n_updates else self.actor
        self._behaviour_paths = None
        if self.replays_paths or not at_random:
            with torch.no_grad():
                observations = torch.tensor(self._last_obs, device=self.device)  # aligned, or the last bit may vary
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
        if normalizer is not None:  # what is stored is not normalized
            reward = normalizer.get_original_reward()
            before, original = self._last_original_obs, normalizer.get_original_obs()
        assert isinstance(replay_buffer, RouteReplayBuffer)
        assert isinstance(before, np.ndarray)
        assert isinstance(original, np.ndarray)
        after = original.copy()
        for i in np.flatnonzero(dones):  # where an episode ended, new_obs is the first observation of the next one
            last = infos[i].get("terminal_observation")
            if last is not None:
                after[i] = last if normalizer is None else normalizer.unnormalize_obs(last)
        self._step_pending = False
        self._last_obs = None  # after a step that is refused, episodes start anew
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
        self._told_of_waiting = False
        self._logged_at, self._learning = -1, True  # the steps of another learn() may have the same numbers
        try:
            super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)
        finally:
            self._learning = False
        self.report.record_updates(self)
        return self

    def _setup_learn(
        self, total_timesteps: int, callback: MaybeCallback = None, reset_num_timesteps: bool = True, *args: Any
    ) -> tuple[int, BaseCallback]:
        if self.return_bounds is not None and (reset_num_timesteps or self._last_obs is None):
            self.return_bounds.forget_running()  # SB3 starts new episodes
        return super()._setup_learn(total_timesteps, callback, reset_num_timesteps, *args)

    def collect_rollouts(self, env: VecEnv, callback: BaseCallback, *args: Any, **kwargs: Any) -> RolloutReturn:
        rollout = super().collect_rollouts(env, callback, *args, **kwargs)
        if self._step_pending:  # a callback stopped it before the step was stored
            step = callback.locals
            self._update_info_buffer(step["infos"], step["dones"])
            parts = ("replay_buffer", "buffer_actions", "new_obs", "rewards", "dones", "infos")
            self._store_transition(*(step[part] for part in parts))
        return rollout

    def train(self, gradient_steps: int, batch_size: int | None = None) -> None:
        batch_size = self.batch_size if batch_size is None else batch_size
        check_precision(self)
        self.policy.set_training_mode(True)
        optimizers = [self.actor.optimizer, self.critic.optimizer]
        if self.policy.shared_optimizer is not None and self.shared_lr is None:
            optimizers.append(self.policy.shared_optimizer)
        if self.ent_coef_optimizer is not None and self.ent_coef_lr is None:
            optimizers.append(self.ent_coef_optimizer)
        self._update_learning_rate(optimizers)

        assert self.replay_buffer is not None
        if self._waits_for_tasks():
            return
        if self.return_bounds is not None:
            self.return_bounds.update()
        if self.rollout_actor is not None:
            self.rollout_actor.load_state_dict(self.actor.state_dict())
        for _ in range(gradient_steps):
            self._update(batch_size, self.tau if self._n_updates % self.target_update_interval == 0 else None)
            self._n_updates += 1
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        if not self._learning:  # within learn(), values are read when they are logged, and not after each update
            self.report.record_updates(self)

    def _update(self, batch_size: int, tau: float | None) -> None:
        """Updates the networks once, the targets by a fraction; None leaves them."""
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
        """The update as CUDA graphs; None where it runs as it is."""
        if not self.capture or self._runs_eagerly or self.device.type != captured.CAPTURING_DEVICE:
            return None
        if (why := captured.obstacle(self)) is not None:
            self._leave_capture(why)
            return None
        assert self.replay_buffer is not None
        if self._graphs is None or self._graphs.replay.buffer is not self.replay_buffer:
            self._graphs = None  # and with it the copy of another buffer
            try:
                self._graphs = captured.CapturedUpdate(self._networks(), self.replay_buffer, self.report, self.device)
            except torch.OutOfMemoryError:
                self._leave_capture("the device has no memory for a copy of the replay buffer")
        return self._graphs

    def _leave_capture(self, why: str) -> None:
        warnings.warn(f"updates run one operation at a time, not as a CUDA graph: {why}.", stacklevel=2)
        self._runs_eagerly, self._graphs = True, None

    def _networks(self) -> Networks:
        """The parts of the model that an update changes."""
        log_alpha = self.entropy_coefficients.log() if self.log_ent_coef is None else self.log_ent_coef
        shared = self.policy.shared_optimizer
        bounds = None if self.return_bounds is None else self.return_bounds.update()
        return Networks(self.actor, self.critic, self.critic_target, log_alpha, self.ent_coef_optimizer, shared, bounds)

    def _coefficients(self) -> Coefficients:
        """The settings of the next update."""
        weight, learned = self.demonstration_weight, self._n_updates - self.actor_starts
        if self.demonstration_decay is not None:
            weight *= min(max(1 - learned / self.demonstration_decay, 0), 1)
        assert self.actor_paths is not None
        return Coefficients(
            gamma=self.gamma,
            target_entropy=float(self.target_entropy),
            reward_scale=self.reward_scale,
            critic_loss=self.critic_loss,
            value_range=self.value_range,
            q_target=self.q_target,
            task_weights=self.task_weights,
            route_temperature=self.route_temperature,
            actor_paths=self.actor_paths,
            critic_paths=self.critic_paths,
            max_ent_coef=self.max_ent_coef,
            max_task_loss=self.max_task_loss,
            max_grad_norm=self.max_grad_norm,
            actor_learns=learned >= 0,
            demonstration_weight=weight,
            precision=self.precision,
            joint_update=self.joint_update,
            ent_coef_after_step=self.ent_coef_after_step,
            max_ent_coef_grad_norm=self.max_ent_coef_grad_norm,
            mask_rule=self.mask_rule,
            log_prob_epsilon=self.log_prob_epsilon,
        )

    def _waits_for_tasks(self) -> bool:
        """Whether some tasks have no transitions yet, as where one environment takes a new task with each episode."""
        assert self.replay_buffer is not None
        if not self.replay_buffer.balanced:
            return False
        missing = np.flatnonzero(self.replay_buffer.counts == 0)
        if not len(missing) or not self.replay_buffer.size():  # nothing to learn from at all is an error
            return False
        if not self._told_of_waiting:
            self._told_of_waiting = True
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
        for i in [i for i, info in enumerate(infos) if "episode" in info]:
            assert isinstance(self._last_obs, np.ndarray)
            self.report.add_episode(self.policy.task_space.tasks(self._last_obs)[i], infos[i])

    def dump_logs(self) -> None:
        if self._logged_at != self.num_timesteps:  # episodes of several tasks end at once
            self._logged_at = self.num_timesteps
            self.report.log(self)
            super().dump_logs()

    def save_replay_buffer(self, path: str | Path | io.BufferedIOBase) -> None:
        """Writes the replay buffer to a file of its own format, without pickle.

        Args:
            path: The name of the file, or a file object. SB3 adds ".pkl" to a name that has no ending; here it stays.
        """
        if self.replay_buffer is None:
            raise ValueError("`replay_buffer` must be there to be saved, got None; load_replay_buffer() makes one.")
        save_buffer(self.replay_buffer, path)

    def load_replay_buffer(self, path: str | Path | io.BufferedIOBase, truncate_last_traj: bool = True) -> None:
        """Reads the file that :meth:`save_replay_buffer` wrote, which cannot run code.

        A model without a buffer gets one.

        Args:
            path: The name of the file, or a file object.
            truncate_last_traj: As in SB3, for a HerReplayBuffer alone, which this algorithm does not have.
        """
        buffer = self._make_replay_buffer() if self.replay_buffer is None else self.replay_buffer
        load_buffer(buffer, path)
        self.replay_buffer = buffer

    def _make_replay_buffer(self) -> RouteReplayBuffer:
        assert self.replay_buffer_class is not None
        buffer = self.replay_buffer_class(
            self.buffer_size,
            self.observation_space,
            self.action_space,
            device=self.device,
            n_envs=self.n_envs,
            optimize_memory_usage=self.optimize_memory_usage,
            **self.replay_buffer_kwargs,
        )
        assert isinstance(buffer, RouteReplayBuffer)
        if self.replays_paths and self.policy.topology is not None:
            buffer.keep_paths(self.policy.topology)
        return buffer

    def save_checkpoint(self, folder: str | Path, notes: Mapping[str, Any] | None = None) -> None:
        """Writes everything that training depends on to a new folder, whole or not at all.

        Args:
            folder: The folder.
            notes: Plain data to keep beside it, in ``notes.json``.
        """
        save_checkpoint(self, Path(folder), notes)

    @classmethod
    def load_checkpoint(
        cls,
        folder: str | Path,
        env: GymEnv | None = None,
        device: torch.device | str = "auto",
        replace: Mapping[str, Any] | None = None,
    ) -> Self:
        """Restores a model from a checkpoint, to go on as if nothing had happened; no code of the folder runs.

        Args:
            folder: What :meth:`save_checkpoint` wrote.
            env: The environments, as many as there were; without them the model can only predict.
            device: Where the networks are.
            replace: What could not be stored, such as a learning rate that is a function: ``{"learning_rate": f}``.
        """
        return load_checkpoint(cls, Path(folder), env, device, replace or {})

    def _excluded_save_params(self) -> list[str]:
        own = ("report", "rollout_actor", "return_bounds", "_behaviour_paths", "_learning", "_graphs", "_runs_eagerly")
        return [*super()._excluded_save_params(), *own]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        states, tensors = super()._get_torch_save_params()
        if self.policy.shared_optimizer is not None:
            states = [*states, "policy.shared_optimizer"]
        if self.rollout_actor is not None:
            states = [*states, "rollout_actor"]
        if self.return_bounds is not None:
            states = [*states, "return_bounds"]
        return states, tensors
