"""Policies of a single task, from the state to the action, without the rest of the network."""

import copy

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.running_mean_std import RunningMeanStd
from torch import Tensor, nn

from dynroute import Extraction, TaskNetwork, extract
from dynroute.arguments import check_count, check_number, check_tensor
from dynroute.networks import Network

from .normalizer import StateNormalizer
from .sac import MultiTaskSAC

__all__ = ["TaskPolicy", "check_extractable", "extract_policy", "whole_policy"]


class TaskPolicy(nn.Module):
    r"""Computes actions :math:`\tanh \mu(s)` from states of one task; :func:`extract_policy` makes it.

    Args:
        normalizer: Normalizes states, as the environments and the policy of the model do.
        network: The network of the task, from states to means and log-standard deviations.
        center: The middle of the range of actions, in the shape of an action.
        reach: Half of that range, in the same shape.

    Example:
        >>> sizes = {"num_modules": 3, "width": 8, "trunk_sizes": (8,), "router_sizes": (8,)}
        >>> env = DummyVecEnv(point_tasks())
        >>> model = MultiTaskSAC("D2RPolicy", env, policy_kwargs={"network_kwargs": sizes})
        >>> policy: TaskPolicy = extract_policy(model, torch.as_tensor(env.reset()[:, :-4]), task=0)
        >>> policy.report.parameters <= policy.report.parameters_before
        True
    """

    center: Tensor
    reach: Tensor

    def __init__(self, normalizer: nn.Module, network: TaskNetwork, center: Tensor, reach: Tensor) -> None:
        super().__init__()
        self.normalizer, self.network = normalizer, network
        self.register_buffer("center", center)
        self.register_buffer("reach", reach)
        self.unscaled = bool((center == 0).all() and (reach == 1).all())
        self.train(False)

    @property
    def report(self) -> Extraction:
        """The report of the extraction; its deviation is of actions."""
        return self.network.report

    def forward(self, state: Tensor) -> Tensor:
        """Computes the actions for states with shape ``[*, state_features]``, in the range of the environments."""
        mean, _ = self.network(self.normalizer(state)).chunk(2, dim=-1)
        action = torch.tanh(mean)
        if self.center.dim() > 1:
            action = action.reshape(*action.shape[:-1], *self.center.shape)
        return action if self.unscaled else self.center + self.reach * action


def extract_policy(model: MultiTaskSAC, states: Tensor, *, task: int, coverage: float = 1.0) -> TaskPolicy:
    """Extracts the deterministic policy of one task from a model.

    It normalizes states as in training, squashes the mean by tanh and scales actions to the range of the environments.
    If these are in a MultiTaskVecNormalize, the policy has its current statistics and takes states that are not
    normalized; a model that was loaded without its environments lacks them, and its policy takes normalized states.

    Args:
        model: The model, whose network contains a routed graph.
        states: Typical states without the task, not normalized, with shape ``[samples, state_features]``.
        task: The id of the task.
        coverage: The share of these states whose routes stay complete, see :func:`dynroute.extract`.

    Returns:
        The policy, on the CPU.

    Example:
        >>> sizes = {"num_modules": 3, "width": 8, "trunk_sizes": (8,), "router_sizes": (8,)}
        >>> env = DummyVecEnv(point_tasks())
        >>> model = MultiTaskSAC("D2RPolicy", env, policy_kwargs={"network_kwargs": sizes})
        >>> observations = env.reset()
        >>> states = torch.as_tensor(observations[:, :-4])
        >>> policy = extract_policy(model, states, task=2)
        >>> actions, _ = model.predict(observations, deterministic=True)
        >>> import numpy as np
        >>> np.allclose(policy(states[2]).detach(), actions[2], atol=1e-6)
        True
    """
    features = model.policy.task_space.state_features
    check_tensor("states", states)
    if states.dim() != 2 or states.shape[1] != features or not len(states):
        raise ValueError(
            f"`states` must have shape (samples, {features}), without the one-hot of the task, got "
            f"{tuple(states.shape)}."
        )
    check_extractable(model, coverage)
    whole = whole_policy(model, task=task)
    states = states.to("cpu", whole.center.dtype)
    with torch.no_grad():
        small = extract(whole.network.network, whole.normalizer(states), coverage, task=task)
        assert isinstance(small, TaskNetwork)
        policy = TaskPolicy(whole.normalizer, small, whole.center, whole.reach)
        deviation = float((policy(states) - whole(states)).abs().max())
    small.report = small.report._replace(deviation=deviation)
    return policy


def check_extractable(model: MultiTaskSAC, coverage: float) -> None:
    """Raises the error of :func:`extract_policy` for a model of which nothing can be left out, or for a coverage."""
    net = model.actor.net
    if not isinstance(net, Network) or net.routed is None:
        raise ValueError(
            f"`model` must have a network of dynroute.networks that contains a routed graph, got a "
            f"{type(net).__name__}, of which every task uses all."
        )
    check_number("coverage", coverage, above=0, at_most=1)


def whole_policy(model: MultiTaskSAC, *, task: int) -> TaskPolicy:
    """Makes the policy of one task of a model with the whole network, to compare it with the extracted one.

    Args:
        model: The model, with a network of :mod:`dynroute.networks`.
        task: The id of the task.

    Returns:
        The policy, on the CPU.

    Example:
        >>> from dynroute_sb3.task_policy import whole_policy
        >>> import numpy as np
        >>> env = DummyVecEnv(point_tasks())
        >>> model, observations = MultiTaskSAC("MlpPolicy", env), env.reset()
        >>> actions, _ = model.predict(observations, deterministic=True)
        >>> policy = whole_policy(model, task=1)
        >>> np.allclose(policy(torch.as_tensor(observations[1, :-4])).detach(), actions[1], atol=1e-6)
        True
    """
    actor = model.actor
    check_count("task", task, at_least=0)
    count = actor.task_space.num_tasks
    if task >= count:
        raise ValueError(f"`task` must be less than {count}, the number of tasks, got {task}.")
    net = copy.deepcopy(actor.net).cpu()
    if not isinstance(net, Network):
        raise TypeError(f"`model` must have a network of dynroute.networks, got a {type(net).__name__}.")
    one_hot = torch.zeros(count)
    one_hot[task] = 1
    nodes = tuple(range(net.topology.num_nodes)) if net.topology is not None else ()
    numbers = sum(parameter.numel() for parameter in net.parameters())
    report = Extraction(nodes, 1.0, 0.0, numbers, numbers, "routes" if nodes else "nothing")
    space = actor.action_space
    assert isinstance(space, spaces.Box)
    own = copy.deepcopy(actor.normalizer).cpu()
    normalizer = own if (before := _environment_normalizer(model)) is None else nn.Sequential(*before, own)
    center, reach = (
        torch.as_tensor(end).to(own.mean.dtype) for end in ((space.high + space.low) / 2, (space.high - space.low) / 2)
    )
    return TaskPolicy(normalizer, TaskNetwork(net, one_hot, report), center, reach)


def _environment_normalizer(model: MultiTaskSAC) -> list[nn.Module] | None:
    """The normalization of states by a MultiTaskVecNormalize, without a task; None if there is none."""
    env = model.get_vec_normalize_env()
    if env is None or not env.norm_obs:
        return None
    statistics, features = env.obs_rms, model.policy.task_space.state_features
    assert isinstance(statistics, RunningMeanStd)
    normalizer = StateNormalizer(features, dtype=model.actor.normalizer.mean.dtype)
    normalizer.mean.copy_(torch.from_numpy(statistics.mean[:features]))
    normalizer.scale.copy_(torch.from_numpy(1 / np.sqrt(statistics.var[:features] + env.epsilon)))
    return [normalizer, nn.Hardtanh(-env.clip_obs, env.clip_obs)]
