"""One update of multi-task SAC.

:func:`update` has the order of SB3's: the coefficients of entropy, the critics, the actor. :func:`joint_update` has
that of released code: all losses come first, and then all step together.

No value is read on the way, so that on a GPU an update never waits for the one before, and a CUDA graph can hold it.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .actor import MultiTaskActor
from .categorical import combine_distributions, cross_entropy, outside_share, project, support
from .critic import MultiTaskCritic
from .losses import (
    actor_loss,
    cloning_loss,
    combine_critics,
    critic_loss,
    ent_coef_loss,
    mean_by_task,
    path_temperature,
    return_scale,
    sample_shares,
    td_target,
    weigh_tasks,
)
from .replay import RouteReplaySamples

__all__ = ["Coefficients", "Networks", "TaskReport", "follow", "joint_update", "update"]


@dataclass(frozen=True, slots=True)
class Networks:
    """The parts of a model that an update changes.

    Attributes:
        actor: The policy, with its optimizer.
        critic: The critics, with theirs.
        critic_target: The critics that follow.
        log_alpha: The logarithm of each task's coefficient of entropy, or of the one of all tasks.
        alpha_optimizer: Its optimizer; None if the coefficients are fixed.
        shared_optimizer: The optimizer of what actor and critics share; None if they share nothing.
        return_bounds: The extreme returns of each task, by which rewards are normalized; None if they are not. No
            update changes them.
    """

    actor: MultiTaskActor
    critic: MultiTaskCritic
    critic_target: MultiTaskCritic
    log_alpha: Tensor
    alpha_optimizer: Optimizer | None
    shared_optimizer: Optimizer | None
    return_bounds: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Coefficients:
    """The numbers and rules of an update; what has the name of a keyword of MultiTaskSAC is that.

    Attributes:
        gamma: The discount factor.
        target_entropy: The entropy that the coefficients of entropy hold.
        reward_scale: Multiplies rewards.
        critic_loss: What the critics learn, "mse" for values, "categorical" for distributions over bins.
        value_range: The values of the first bin and of the last, and where normalized returns lie.
        q_target: How one value is made of those of the critics, for their target and for the actor.
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
        joint_update: Whether all losses come before any step, see :func:`joint_update`.
        ent_coef_after_step: Whether the losses of critics and actor take the coefficients as they are after their step.
        max_ent_coef_grad_norm: The norm to which the gradient of the logarithm of the coefficients is clipped.
        mask_rule: How tasks with extreme losses are found.
        log_prob_epsilon: What is added inside the logarithm of the change of variables by tanh.
    """

    gamma: float
    target_entropy: float
    reward_scale: float
    critic_loss: str
    value_range: tuple[float, float]
    q_target: str
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
    joint_update: bool
    ent_coef_after_step: bool
    max_ent_coef_grad_norm: float | None
    mask_rule: str
    log_prob_epsilon: float


@dataclass
class TaskReport:
    """The figures of an update, a number for each task.

    Attributes:
        actor_loss: The loss of the actor, before weights; 0 while the actor waits.
        critic_loss: The loss of the critics together, before weights.
        ent_coef_loss: The loss of the coefficient of entropy.
        entropy: The mean of minus the log-probability of the actor's actions.
        masked: 1 for a task that was left out for its extreme loss.
        outside_range: The share of the critics' target distribution that lay outside of the range of values; 0 for
            critics that predict values.
    """

    actor_loss: Tensor
    critic_loss: Tensor
    ent_coef_loss: Tensor
    entropy: Tensor
    masked: Tensor
    outside_range: Tensor


def update(batch: RouteReplaySamples, networks: Networks, given: Coefficients) -> TaskReport:
    """Updates networks from a batch, one after another: the coefficients of entropy, the critics, the actor."""
    if given.joint_update:
        return joint_update(batch, networks, given)
    actor, critic, shared = networks.actor, networks.critic, networks.shared_optimizer
    alpha, weights = _weigh(networks, given)
    rows = _read(batch, networks, alpha, given)
    observations, tasks, present = rows.observations, rows.tasks, rows.present
    temperature = tasks @ _set_temperature(actor, alpha, given)

    # The coefficients of entropy, from the actions and paths that the actor's loss takes too.
    with _products(given, tasks):
        paths = _paths(given.actor_paths, batch)
        new_actions, log_probs, means = actor.action_log_prob(observations, epsilon=given.log_prob_epsilon, **paths)
    entropy = -mean_by_task(log_probs.detach(), tasks)
    ent_coef_losses = torch.zeros_like(entropy)
    if given.actor_learns and networks.alpha_optimizer is not None:
        losses = _ent_coef_losses(networks, entropy, present, given)
        _learn(losses.mean(), networks.alpha_optimizer, [[networks.log_alpha]], given.max_ent_coef_grad_norm)
        _limit(networks.log_alpha, given)
        ent_coef_losses = losses.detach()
        if given.ent_coef_after_step:
            alpha, weights = _weigh(networks, given)
    alpha_of_sample = tasks @ alpha

    # The critics.
    target, outside = _target(rows, networks, alpha_of_sample, given)
    with _products(given, tasks):
        paths = _paths(given.critic_paths, batch)
        predicted = critic.outputs(observations, rows.actions, temperature=temperature, **paths)
    critic_losses = mean_by_task(_critic_loss(predicted.detach(), target, given), tasks)
    extreme = present & _exceeds(critic_losses, given.max_task_loss)
    shares = sample_shares(weights, present & ~extreme, tasks)
    losses = _critic_loss(_kept_rows(predicted, shares), _kept_rows(target, shares), given)
    if shared is not None:
        shared.zero_grad(set_to_none=True)
    _learn((shares * losses).sum(), critic.optimizer, _own(critic.optimizer, critic.nets), given.max_grad_norm)

    # The actor, against the critics as they now are; while it waits, so does what it shares with them.
    actor_losses = torch.zeros_like(critic_losses)
    if given.actor_learns:
        judged, values = _judge(critic, observations, new_actions, given)
        actor_losses = mean_by_task(actor_loss(log_probs, values, alpha_of_sample).detach(), tasks)
        extreme = extreme | (present & _exceeds(actor_losses, given.max_task_loss))
        shares = sample_shares(weights, present & ~extreme, tasks)
        judged.register_hook(lambda slope: _kept(slope.mT, shares).mT)  # type: ignore[no-untyped-call]
        losses = actor_loss(_kept(log_probs, shares), _kept(values, shares), alpha_of_sample)
        if batch.wanted is not None and given.demonstration_weight:
            losses = losses + _kept(_cloning(means, values, tasks, batch.wanted, given), shares)
        _learn((shares * losses).sum(), actor.optimizer, _own(actor.optimizer, [actor.net]), given.max_grad_norm)
        if shared is not None:
            _clip(_parameters(shared), given.max_grad_norm)
            shared.step()
        _repair(actor, extreme, given)
    outside = mean_by_task(outside, tasks)
    return TaskReport(actor_losses, critic_losses, ent_coef_losses, entropy, extreme.to(tasks.dtype), outside)


def joint_update(batch: RouteReplaySamples, networks: Networks, given: Coefficients) -> TaskReport:
    """Updates networks from a batch together: all losses come from the networks before, as in released code.

    With `ent_coef_after_step` the coefficients of entropy step first, as in the release of Soft Modularization.
    """
    actor, critic, shared = networks.actor, networks.critic, networks.shared_optimizer
    alpha_optimizer = networks.alpha_optimizer if given.actor_learns else None
    alpha, weights = _weigh(networks, given)
    rows = _read(batch, networks, alpha, given)
    observations, tasks, present = rows.observations, rows.tasks, rows.present
    temperature = tasks @ _set_temperature(actor, alpha, given)

    # The losses of the coefficients of entropy.
    with _products(given, tasks):
        paths = _paths(given.actor_paths, batch)
        new_actions, log_probs, means = actor.action_log_prob(observations, epsilon=given.log_prob_epsilon, **paths)
    entropy = -mean_by_task(log_probs.detach(), tasks)
    ent_coef_losses = torch.zeros_like(entropy)
    if alpha_optimizer is not None:
        ent_coef_losses = _ent_coef_losses(networks, entropy, present, given)
        if given.ent_coef_after_step:
            _learn(ent_coef_losses.mean(), alpha_optimizer, [[networks.log_alpha]], given.max_ent_coef_grad_norm)
            _limit(networks.log_alpha, given)
            alpha, weights = _weigh(networks, given)
            ent_coef_losses, alpha_optimizer = ent_coef_losses.detach(), None
    alpha_of_sample = tasks @ alpha

    # Those of the critics, and of the actor against them.
    target, outside = _target(rows, networks, alpha_of_sample, given)
    with _products(given, tasks):
        paths = _paths(given.critic_paths, batch)
        predicted = critic.outputs(observations, rows.actions, temperature=temperature, **paths)
    critic_losses = mean_by_task(_critic_loss(predicted.detach(), target, given), tasks)
    actor_losses = torch.zeros_like(critic_losses)
    if given.actor_learns:
        judged, values = _judge(critic, observations, new_actions, given)
        actor_losses = mean_by_task(actor_loss(log_probs, values, alpha_of_sample).detach(), tasks)

    # Their sum over the tasks that stay; more of them may stay for the critics.
    if given.mask_rule == "total":
        total = ent_coef_losses.detach() + weights * (critic_losses + actor_losses)
        extreme = present & _exceeds(total, given.max_task_loss)
        shares = actor_shares = sample_shares(weights, present & ~extreme, tasks, counted=present)
        loss = torch.where(extreme, 0, ent_coef_losses).mean()
    else:
        extreme = present & _exceeds(critic_losses, given.max_task_loss)
        shares = sample_shares(weights, present & ~extreme, tasks)
        extreme = extreme | (present & _exceeds(actor_losses, given.max_task_loss))
        actor_shares = sample_shares(weights, present & ~extreme, tasks)
        loss = ent_coef_losses.mean()
    losses = _critic_loss(_kept_rows(predicted, shares), _kept_rows(target, shares), given)
    loss = loss + (shares * losses).sum()
    if given.actor_learns:
        judged.register_hook(lambda slope: _kept(slope.mT, actor_shares).mT)  # type: ignore[no-untyped-call]
        losses = actor_loss(_kept(log_probs, actor_shares), _kept(values, actor_shares), alpha_of_sample)
        if batch.wanted is not None and given.demonstration_weight:
            losses = losses + _kept(_cloning(means, values, tasks, batch.wanted, given), actor_shares)
        loss = loss + (actor_shares * losses).sum()

    # One way back, and all steps.
    optimizers = [critic.optimizer, *([actor.optimizer, shared, alpha_optimizer] if given.actor_learns else [shared])]
    for optimizer in filter(None, optimizers):
        optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    for part in _own(critic.optimizer, critic.nets):
        _clip(part, given.max_grad_norm)
    critic.optimizer.step()
    if given.actor_learns:
        for part in _own(actor.optimizer, [actor.net]):
            _clip(part, given.max_grad_norm)
        actor.optimizer.step()
        if shared is not None:
            _clip(_parameters(shared), given.max_grad_norm)
            shared.step()
        if alpha_optimizer is not None:
            _clip([networks.log_alpha], given.max_ent_coef_grad_norm)
            alpha_optimizer.step()
            _limit(networks.log_alpha, given)
        _repair(actor, extreme, given)
    outside = mean_by_task(outside, tasks)
    return TaskReport(actor_losses, critic_losses, ent_coef_losses.detach(), entropy, extreme.to(tasks.dtype), outside)


class _Rows(NamedTuple):
    """A batch in the type of the networks, rewards scaled or normalized, with the tasks it has transitions of."""

    observations: Tensor
    actions: Tensor
    next_observations: Tensor
    rewards: Tensor
    dones: Tensor
    tasks: Tensor
    present: Tensor


def _read(batch: RouteReplaySamples, networks: Networks, alpha: Tensor, given: Coefficients) -> _Rows:
    actor = networks.actor
    observations, actions, next_observations, rewards, dones = (
        part.to(actor.temperature.dtype)
        for part in (batch.observations, batch.actions, batch.next_observations, batch.rewards, batch.dones)
    )
    tasks = actor.task_space.split(observations)[1]
    rewards, dones = given.reward_scale * rewards.squeeze(-1), dones.squeeze(-1)
    if networks.return_bounds is not None:
        bounds = given.reward_scale * networks.return_bounds.to(rewards.dtype)
        rewards = rewards / (tasks @ return_scale(bounds, alpha, given.gamma, given.target_entropy, given.value_range))
    return _Rows(observations, actions, next_observations, rewards, dones, tasks, tasks.any(dim=0))


def _products(given: Coefficients, like: Tensor) -> AbstractContextManager[Any]:
    """Where networks multiply in the precision that is asked for."""
    return torch.autocast(like.device.type, torch.bfloat16, enabled=given.precision == "bf16")


def _weigh(networks: Networks, given: Coefficients) -> tuple[Tensor, Tensor]:
    """The coefficient of entropy of each task as it is now, and the weight of its losses."""
    alpha = networks.log_alpha.detach().exp().to(networks.actor.temperature.dtype)
    alpha = alpha.expand_as(networks.actor.temperature)
    return alpha, weigh_tasks(given.task_weights, alpha)


def _set_temperature(actor: MultiTaskActor, alpha: Tensor, given: Coefficients) -> Tensor:
    """Brings the temperature of path sampling up to date; the actor keeps it."""
    actor.temperature.copy_(path_temperature(given.route_temperature, alpha))
    return actor.temperature


def _ent_coef_losses(networks: Networks, entropy: Tensor, present: Tensor, given: Coefficients) -> Tensor:
    # A task without samples has nothing to follow, and one that diverged would spoil its coefficient for good.
    excess = entropy - given.target_entropy
    return ent_coef_loss(networks.log_alpha, torch.where(present & excess.isfinite(), excess, 0))


def _limit(log_alpha: Tensor, given: Coefficients) -> None:
    if given.max_ent_coef is not None:
        log_alpha.data.clamp_(max=math.log(given.max_ent_coef))


@torch.no_grad()
def _target(rows: _Rows, networks: Networks, alpha: Tensor, given: Coefficients) -> tuple[Tensor, Tensor]:
    """The targets of the critics, with shape ``[batch, 1 or bins]``, and how much of it is out of range."""
    with _products(given, alpha):
        actions, log_probs, _ = networks.actor.action_log_prob(rows.next_observations, epsilon=given.log_prob_epsilon)
        outputs = networks.critic_target.outputs(rows.next_observations, actions)
    if given.critic_loss == "mse":
        values = combine_critics(outputs.squeeze(-1), given.q_target)
        target = td_target(rows.rewards, rows.dones, values, log_probs, alpha, given.gamma)
        return target.unsqueeze(-1), torch.zeros_like(target)
    # Each value of the support moves as a value does, and takes its probability along.
    bins, moving = outputs.shape[-1], (rows.rewards, rows.dones, log_probs, alpha)
    rewards, dones, log_probs, alpha = (each.unsqueeze(-1) for each in moving)
    values = td_target(rewards, dones, support(bins, given.value_range, like=outputs), log_probs, alpha, given.gamma)
    probabilities = combine_distributions(outputs, given.value_range, given.q_target)
    target = project(probabilities, values, given.value_range, bins)
    return target, outside_share(probabilities, values, given.value_range)


def _critic_loss(predicted: Tensor, target: Tensor, given: Coefficients) -> Tensor:
    """The loss of the critics for each sample, from their outputs."""
    if given.critic_loss == "categorical":
        return cross_entropy(predicted, target)
    return critic_loss(predicted.squeeze(-1), target.squeeze(-1))


def _judge(
    critic: MultiTaskCritic, observations: Tensor, actions: Tensor, given: Coefficients
) -> tuple[Tensor, Tensor]:
    """Actions, and their value by the critics; gradients reach the actions alone."""
    judged = actions.clone()
    with frozen(critic), _products(given, observations):
        return judged, combine_critics(critic(observations, judged), given.q_target)


def _cloning(means: Tensor, values: Tensor, tasks: Tensor, wanted: Tensor, given: Coefficients) -> Tensor:
    # Relative to the values, or its weight would depend on the scale of the rewards.
    scale = given.demonstration_weight * tasks @ mean_by_task(values.detach().nan_to_num().abs(), tasks)
    return scale * cloning_loss(means, wanted)


def _repair(actor: MultiTaskActor, extreme: Tensor, given: Coefficients) -> None:
    """Lets a network repair what belongs to tasks with extreme losses, where it can."""
    reinitialize = getattr(actor.net, "reinitialize", None)
    if reinitialize is not None and given.max_task_loss is not None:
        reinitialize(extreme)


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


def _kept_rows(outputs: Tensor, shares: Tensor) -> Tensor:
    """The same for outputs with shape ``[*, batch, n]``."""
    return _kept(outputs, shares.unsqueeze(-1))


def _exceeds(losses: Tensor, limit: float | None) -> Tensor:
    """Which losses are extreme; a NaN is."""
    return torch.zeros_like(losses, dtype=torch.bool) if limit is None else ~(losses <= limit)


def _learn(loss: Tensor, optimizer: Optimizer, parts: Iterable[list[Tensor]], max_norm: float | None) -> None:
    """A step down a loss, with the gradient of each part of the parameters clipped."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    for part in parts:
        _clip(part, max_norm)
    optimizer.step()


def _own(optimizer: Optimizer, nets: Iterable[nn.Module]) -> list[list[Tensor]]:
    """The parameters of each network that an optimizer has; what networks share has another one."""
    own = set(_parameters(optimizer))
    return [[parameter for parameter in net.parameters() if parameter in own] for net in nets]


def _clip(parameters: list[Tensor], max_norm: float | None) -> None:
    if max_norm is not None:
        nn.utils.clip_grad_norm_(parameters, max_norm)


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
