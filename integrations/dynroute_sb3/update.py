"""One update of multi-task SAC, in the order of SB3's: the coefficients of entropy, the critics, the actor.

No value is read on the way, so that on a GPU an update never waits for the one before, and a CUDA graph can hold it.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .actor import MultiTaskActor
from .critic import MultiTaskCritic
from .losses import (
    actor_loss,
    cloning_loss,
    critic_loss,
    ent_coef_loss,
    mean_by_task,
    path_temperature,
    sample_shares,
    td_target,
    weigh_tasks,
)
from .replay import RouteReplaySamples

__all__ = ["Coefficients", "Networks", "TaskReport", "follow", "update"]


@dataclass(frozen=True, slots=True)
class Networks:
    """What an update changes.

    Attributes:
        actor: The policy, with its optimizer.
        critic: The critics, with theirs.
        critic_target: The critics that follow.
        log_alpha: The logarithm of each task's coefficient of entropy.
        alpha_optimizer: Its optimizer; None if the coefficients are fixed.
        shared_optimizer: The optimizer of what actor and critics share; None if they share nothing.
    """

    actor: MultiTaskActor
    critic: MultiTaskCritic
    critic_target: MultiTaskCritic
    log_alpha: Tensor
    alpha_optimizer: Optimizer | None
    shared_optimizer: Optimizer | None


@dataclass(frozen=True, slots=True)
class Coefficients:
    """The numbers and rules of an update; what has the name of a keyword of MultiTaskSAC is that.

    Attributes:
        gamma: The discount factor.
        target_entropy: The entropy that the coefficients of entropy hold.
        reward_scale: Multiplies rewards.
        task_weights: How the losses of tasks are weighed.
        route_temperature: How the temperature of path sampling follows the coefficients of entropy.
        actor_paths: Which paths the actor's loss takes.
        critic_paths: Which paths the values take that the critics learn.
        max_ent_coef: The largest coefficient of entropy.
        max_task_loss: A task with a larger loss is left out.
        max_grad_norm: The norm to which the gradient of each network is clipped.
        actor_learns: Whether all learn, or the critics alone.
        demonstration_weight: The weight of the cloning term, as it is by now.
        precision: "bf16" for products in bfloat16, "float32" for products in the type of the parameters.
    """

    gamma: float
    target_entropy: float
    reward_scale: float
    task_weights: str
    route_temperature: float | str
    actor_paths: str
    critic_paths: str
    max_ent_coef: float | None
    max_task_loss: float | None
    max_grad_norm: float | None
    actor_learns: bool
    demonstration_weight: float
    precision: str


@dataclass
class TaskReport:
    """What an update did, a number for each task.

    Attributes:
        actor_loss: The loss of the actor, before weights; 0 while the actor waits.
        critic_loss: The loss of the critics together, before weights.
        ent_coef_loss: The loss of the coefficient of entropy.
        entropy: The mean of minus the log-probability of the actor's actions.
        masked: 1 for a task that was left out for its extreme loss.
    """

    actor_loss: Tensor
    critic_loss: Tensor
    ent_coef_loss: Tensor
    entropy: Tensor
    masked: Tensor


def update(batch: RouteReplaySamples, networks: Networks, given: Coefficients) -> TaskReport:
    """Updates networks from a batch."""
    actor, critic, shared = networks.actor, networks.critic, networks.shared_optimizer
    observations, actions, next_observations, rewards, dones = (
        part.to(actor.temperature.dtype)
        for part in (batch.observations, batch.actions, batch.next_observations, batch.rewards, batch.dones)
    )
    tasks = actor.task_space.split(observations)[1]
    present = tasks.any(dim=0)
    products = partial(torch.autocast, observations.device.type, torch.bfloat16, enabled=given.precision == "bf16")

    alpha = networks.log_alpha.detach().exp().to(tasks.dtype)
    weights = weigh_tasks(given.task_weights, alpha)
    actor.temperature.copy_(path_temperature(given.route_temperature, alpha))
    alpha_of_sample, temperature = tasks @ alpha, tasks @ actor.temperature

    # The coefficients of entropy, from the actions and paths that the actor's loss takes too.
    with products():
        new_actions, log_probs, means = actor.action_log_prob(observations, **_paths(given.actor_paths, batch))
    entropy = -mean_by_task(log_probs.detach(), tasks)
    ent_coef_losses = torch.zeros_like(entropy)
    if given.actor_learns and networks.alpha_optimizer is not None:
        # A task without samples has nothing to follow, and one that diverged would spoil its coefficient for good.
        excess = entropy - given.target_entropy
        losses = ent_coef_loss(networks.log_alpha, torch.where(present & excess.isfinite(), excess, 0))
        _learn(losses.mean(), networks.alpha_optimizer)
        if given.max_ent_coef is not None:
            networks.log_alpha.data.clamp_(max=math.log(given.max_ent_coef))
        ent_coef_losses = losses.detach()

    # The critics.
    with torch.no_grad(), products():
        next_actions, next_log_probs, _ = actor.action_log_prob(next_observations)
        next_values = networks.critic_target(next_observations, next_actions)
    rewards, dones = given.reward_scale * rewards.squeeze(-1), dones.squeeze(-1)
    target = td_target(rewards, dones, next_values, next_log_probs, alpha_of_sample, given.gamma)
    with products():
        values = critic(observations, actions, temperature=temperature, **_paths(given.critic_paths, batch))
    critic_losses = mean_by_task(critic_loss(values.detach(), target), tasks)
    extreme = present & _exceeds(critic_losses, given.max_task_loss)
    shares = sample_shares(weights, present & ~extreme, tasks)
    losses = critic_loss(_kept(values, shares), _kept(target, shares))
    if shared is not None:
        shared.zero_grad(set_to_none=True)
    _learn((shares * losses).sum(), critic.optimizer, critic.nets, given.max_grad_norm)

    # The actor, against the critics as they now are; while it waits, so does what it shares with them.
    actor_losses = torch.zeros_like(critic_losses)
    if given.actor_learns:
        judged = new_actions.clone()
        with frozen(critic), products():
            values = critic(observations, judged).min(dim=0).values
        actor_losses = mean_by_task(actor_loss(log_probs, values, alpha_of_sample).detach(), tasks)
        extreme = extreme | (present & _exceeds(actor_losses, given.max_task_loss))
        shares = sample_shares(weights, present & ~extreme, tasks)
        judged.register_hook(lambda slope: _kept(slope.mT, shares).mT)  # type: ignore[no-untyped-call]
        losses = actor_loss(_kept(log_probs, shares), _kept(values, shares), alpha_of_sample)
        if batch.wanted is not None and given.demonstration_weight:
            # Relative to the values, or its weight would depend on the scale of the rewards.
            scale = given.demonstration_weight * tasks @ mean_by_task(values.detach().nan_to_num().abs(), tasks)
            losses = losses + _kept(scale * cloning_loss(means, batch.wanted), shares)
        _learn((shares * losses).sum(), actor.optimizer, [actor.net], given.max_grad_norm)
        if shared is not None:
            _clip(_parameters(shared), given.max_grad_norm)
            shared.step()
        reinitialize = getattr(actor.net, "reinitialize", None)
        if reinitialize is not None and given.max_task_loss is not None:
            reinitialize(extreme)
    return TaskReport(actor_losses, critic_losses, ent_coef_losses, entropy, extreme.to(tasks.dtype))


@torch.no_grad()
def follow(targets: nn.Module, sources: nn.Module, tau: float) -> None:
    """Moves target parameters towards others by a fraction; statistics, such as those of a BatchNorm, are copied."""
    torch._foreach_lerp_(list(targets.parameters()), list(sources.parameters()), tau)
    for target, source in zip(targets.buffers(), sources.buffers(), strict=True):
        target.copy_(source)


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Makes a module a constant: gradients pass through it and reach none of its parameters."""
    learning = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


def _paths(kind: str, batch: RouteReplaySamples) -> dict[str, Any]:
    """The keywords of a forward pass along paths of a kind."""
    keywords: dict[str, dict[str, Any]] = {"replayed": {"path": batch.paths}, "sampled": {"sample": True}, "topk": {}}
    return keywords[kind]


def _kept(values: Tensor, shares: Tensor) -> Tensor:
    """Values with shape ``[*, batch]``, 0 for samples that count for nothing: a product with 0 would let NaN pass."""
    return torch.where(shares > 0, values, 0)


def _exceeds(losses: Tensor, limit: float | None) -> Tensor:
    """Which losses are extreme; a NaN is."""
    return torch.zeros_like(losses, dtype=torch.bool) if limit is None else ~(losses <= limit)


def _learn(loss: Tensor, optimizer: Optimizer, nets: Iterable[nn.Module] = (), max_norm: float | None = None) -> None:
    """A step down a loss, with the gradient of each network clipped; what networks share is left to others."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    if max_norm is not None:
        own = set(_parameters(optimizer))
        for net in nets:
            _clip([parameter for parameter in net.parameters() if parameter in own], max_norm)
    optimizer.step()


def _clip(parameters: list[nn.Parameter], max_norm: float | None) -> None:
    if max_norm is not None:
        nn.utils.clip_grad_norm_(parameters, max_norm)


def _parameters(optimizer: Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
