"""One update of multi-task SAC.

:func:`update` has the order of SB3: first the entropy coefficients, then the critics, then the actor.
:func:`joint_update` has the order of released code: all losses first, then all steps together.

No value is read, so an update never waits for a GPU, and a CUDA graph can hold it.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dynroute import BalancedTopK, Route
from dynroute.losses import load_balance

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
    """The parts of a model that an update changes or reads.

    Attributes:
        actor: The actor with its optimizer.
        critic: The critics with their optimizer.
        critic_target: The target critics.
        log_alpha: The logarithm of each task's entropy coefficient, or of the one for all tasks.
        alpha_optimizer: Its optimizer; None if the coefficients are fixed.
        shared_optimizer: The optimizer of the parameters that actor and critics share; None if there are none.
        return_bounds: The extreme returns of each task that normalize rewards; None without normalization. Updates only
            read them.
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
    """The numbers and rules of an update, named like the keywords of :class:`~dynroute_sb3.MultiTaskSAC`.

    Attributes:
        gamma: The discount factor.
        target_entropy: The target entropy, as a number.
        reward_scale: The factor of rewards.
        critic_loss: "mse" for critics of values, "categorical" for critics of distributions over bins.
        value_range: The values of the first bin and of the last, and the range of normalized returns.
        q_target: The rule that combines the values of critics, for their target and for the actor.
        task_weights: The rule for the weights of tasks.
        route_temperature: The temperature of path sampling, or its rule.
        actor_paths: The paths of the actor's loss.
        critic_paths: The paths of the values that the critics learn.
        max_ent_coef: The largest entropy coefficient.
        max_task_loss: A task with a larger loss is left out.
        max_grad_norm: The norm to which the gradient of each network is clipped.
        actor_learns: Whether all learn, or only the critics.
        demonstration_weight: The current weight of the cloning loss.
        route_balance: The weight of the load-balancing loss of routes.
        precision: "bf16" for matrix products in bfloat16, "float32" for products in the type of the parameters.
        joint_update: Whether all losses are computed before any step, see :func:`joint_update`.
        ent_coef_after_step: Whether the losses of critics and actor use the coefficients after their step.
        max_ent_coef_grad_norm: The norm to which the gradient of the log-coefficients is clipped.
        mask_rule: The rule for leaving out tasks with extreme losses.
        log_prob_epsilon: The epsilon inside the logarithm of the tanh correction.
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
    route_balance: float
    precision: str
    joint_update: bool
    ent_coef_after_step: bool
    max_ent_coef_grad_norm: float | None
    mask_rule: str
    log_prob_epsilon: float


@dataclass
class TaskReport:
    """The results of an update, a number for each task.

    Attributes:
        actor_loss: The unweighted loss of the actor; 0 while it does not learn.
        critic_loss: The unweighted loss of all critics.
        ent_coef_loss: The loss of the entropy coefficient.
        entropy: The mean of minus the log-probability of the actor's actions.
        masked: 1 for a task that was left out because of an extreme loss.
        outside_range: The share of the critics' target distribution outside of the range of values; 0 for critics that
            predict values.
        present: 1 for a task with samples in the batch; the other numbers say nothing of a task without.
    """

    actor_loss: Tensor
    critic_loss: Tensor
    ent_coef_loss: Tensor
    entropy: Tensor
    masked: Tensor
    outside_range: Tensor
    present: Tensor


def update(batch: RouteReplaySamples, networks: Networks, given: Coefficients) -> TaskReport:
    """Updates the entropy coefficients, the critics and the actor one after another from a batch."""
    if given.joint_update:
        return joint_update(batch, networks, given)
    actor, critic, shared = networks.actor, networks.critic, networks.shared_optimizer
    alpha_optimizer = networks.alpha_optimizer if given.actor_learns else None
    alpha, weights = _weigh(networks, given)
    rows = _read(batch, networks, alpha, given)
    tasks, present = rows.tasks, rows.present

    # The entropy coefficients, with the actions and paths of the actor's loss.
    draw = _draw(actor, rows, given)
    ent_coef_losses = torch.zeros_like(draw.entropy)
    if alpha_optimizer is not None:
        ent_coef_losses = _ent_coef_losses(networks, draw.entropy, present, given)
        _learn(ent_coef_losses.mean(), alpha_optimizer, [[networks.log_alpha]], given.max_ent_coef_grad_norm)
        _limit(networks.log_alpha, given)
        if given.ent_coef_after_step:
            alpha, weights = _weigh(networks, given)

    # The critics.
    alpha_of_sample = tasks @ alpha
    predicted = _predict(rows, networks, alpha_of_sample, given)
    extreme = present & _exceeds(predicted.losses, given.max_task_loss)
    shares = sample_shares(weights, present & ~extreme, tasks)
    if shared is not None:
        shared.zero_grad(set_to_none=True)
    loss = _critic_objective(predicted, shares, given)
    _learn(loss, critic.optimizer, _own(critic.optimizer, critic.nets), given.max_grad_norm)

    # The actor, with the updated critics. The shared parameters also learn only when the actor learns.
    actor_losses = torch.zeros_like(predicted.losses)
    if given.actor_learns:
        judged = _judge(critic, rows, draw, alpha_of_sample, given)
        actor_losses = judged.losses
        extreme = extreme | (present & _exceeds(actor_losses, given.max_task_loss))
        shares = sample_shares(weights, present & ~extreme, tasks)
        loss = _actor_objective(rows, draw, judged, shares, given)
        _learn(loss, actor.optimizer, _own(actor.optimizer, [actor.net]), given.max_grad_norm)
        if shared is not None:
            _step(shared, [_parameters(shared)], given.max_grad_norm)
        _repair(actor, extreme, given)
    masked, there = extreme.to(tasks.dtype), present.to(tasks.dtype)
    ent_coef_losses = ent_coef_losses.detach()
    return TaskReport(actor_losses, predicted.losses, ent_coef_losses, draw.entropy, masked, predicted.outside, there)


def joint_update(batch: RouteReplaySamples, networks: Networks, given: Coefficients) -> TaskReport:
    """Computes all losses from a batch before any step, then updates all networks, as in released code.

    With `ent_coef_after_step` the entropy coefficients step first, as in the release of Soft Modularization.
    """
    actor, critic, shared = networks.actor, networks.critic, networks.shared_optimizer
    alpha_optimizer = networks.alpha_optimizer if given.actor_learns else None
    alpha, weights = _weigh(networks, given)
    rows = _read(batch, networks, alpha, given)
    tasks, present = rows.tasks, rows.present

    # All losses.
    draw = _draw(actor, rows, given)
    ent_coef_losses = torch.zeros_like(draw.entropy)
    if alpha_optimizer is not None:
        ent_coef_losses = _ent_coef_losses(networks, draw.entropy, present, given)
        if given.ent_coef_after_step:
            _learn(ent_coef_losses.mean(), alpha_optimizer, [[networks.log_alpha]], given.max_ent_coef_grad_norm)
            _limit(networks.log_alpha, given)
            alpha, weights = _weigh(networks, given)
            ent_coef_losses, alpha_optimizer = ent_coef_losses.detach(), None
    alpha_of_sample = tasks @ alpha
    predicted = _predict(rows, networks, alpha_of_sample, given)
    actor_losses = torch.zeros_like(predicted.losses)
    if given.actor_learns:
        judged = _judge(critic, rows, draw, alpha_of_sample, given)
        actor_losses = judged.losses

    # Their sum over the tasks that are kept, which may be more for the critics than for the actor.
    if given.mask_rule == "total":
        total = ent_coef_losses.detach() + weights * (predicted.losses + actor_losses)
        extreme = present & _exceeds(total, given.max_task_loss)
        shares = actor_shares = sample_shares(weights, present & ~extreme, tasks, counted=present)
        loss = torch.where(extreme, 0, ent_coef_losses).mean()
    else:
        extreme = present & _exceeds(predicted.losses, given.max_task_loss)
        shares = sample_shares(weights, present & ~extreme, tasks)
        extreme = extreme | (present & _exceeds(actor_losses, given.max_task_loss))
        actor_shares = sample_shares(weights, present & ~extreme, tasks)
        loss = ent_coef_losses.mean()
    loss = loss + _critic_objective(predicted, shares, given)
    if given.actor_learns:
        loss = loss + _actor_objective(rows, draw, judged, actor_shares, given)

    # One backward pass, then all steps.
    optimizers = [critic.optimizer, *([actor.optimizer, shared, alpha_optimizer] if given.actor_learns else [shared])]
    for optimizer in filter(None, optimizers):
        optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    _step(critic.optimizer, _own(critic.optimizer, critic.nets), given.max_grad_norm)
    if given.actor_learns:
        _step(actor.optimizer, _own(actor.optimizer, [actor.net]), given.max_grad_norm)
        if shared is not None:
            _step(shared, [_parameters(shared)], given.max_grad_norm)
        if alpha_optimizer is not None:
            _step(alpha_optimizer, [[networks.log_alpha]], given.max_ent_coef_grad_norm)
            _limit(networks.log_alpha, given)
        _repair(actor, extreme, given)
    masked, there = extreme.to(tasks.dtype), present.to(tasks.dtype)
    ent_coef_losses = ent_coef_losses.detach()
    return TaskReport(actor_losses, predicted.losses, ent_coef_losses, draw.entropy, masked, predicted.outside, there)


class _Rows(NamedTuple):
    """A batch in the type of the networks, with scaled or normalized rewards and a mask of the tasks in it."""

    observations: Tensor
    actions: Tensor
    next_observations: Tensor
    rewards: Tensor
    dones: Tensor
    discounts: Tensor | float
    tasks: Tensor
    present: Tensor
    batch: RouteReplaySamples


def _read(batch: RouteReplaySamples, networks: Networks, alpha: Tensor, given: Coefficients) -> _Rows:
    """Reads a batch, and updates the temperature of path sampling in the actor."""
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
    discounts = given.gamma if batch.discounts is None else batch.discounts.squeeze(-1).to(dones.dtype)
    actor.temperature.copy_(path_temperature(given.route_temperature, alpha))
    return _Rows(observations, actions, next_observations, rewards, dones, discounts, tasks, tasks.any(dim=0), batch)


class _Draw(NamedTuple):
    """New actions of the actor, its mean actions and route, and the entropy of each task."""

    actions: Tensor
    log_probs: Tensor
    means: Tensor
    route: Route | None
    entropy: Tensor


def _draw(actor: MultiTaskActor, rows: _Rows, given: Coefficients) -> _Draw:
    paths = _paths(given.actor_paths, rows.batch)
    with _products(given, rows.tasks):
        drawn = actor.action_log_prob(rows.observations, epsilon=given.log_prob_epsilon, **paths)
    return _Draw(*drawn, entropy=-mean_by_task(drawn[1].detach(), rows.tasks))


class _Prediction(NamedTuple):
    """The outputs of the critics with their targets and routes; by task their losses and what is outside the range."""

    outputs: Tensor
    target: Tensor
    routes: list[Route]
    losses: Tensor
    outside: Tensor


def _predict(rows: _Rows, networks: Networks, alpha: Tensor, given: Coefficients) -> _Prediction:
    target, outside = _target(rows, networks, alpha, given)
    paths, temperature = _paths(given.critic_paths, rows.batch), rows.tasks @ networks.actor.temperature
    with _products(given, alpha):
        outputs, routes = networks.critic.outputs(rows.observations, rows.actions, temperature=temperature, **paths)
    losses = mean_by_task(_critic_loss(outputs.detach(), target, given), rows.tasks)
    return _Prediction(outputs, target, routes, losses, mean_by_task(outside, rows.tasks))


def _critic_objective(predicted: _Prediction, shares: Tensor, given: Coefficients) -> Tensor:
    """The loss of the critics over the samples that have a share."""
    outputs, target = _kept_rows(predicted.outputs, shares), _kept_rows(predicted.target, shares)
    return (shares * _critic_loss(outputs, target, given)).sum() + _balance(predicted.routes, given)


class _Judgement(NamedTuple):
    """A copy of new actions that alone gets gradients of their values, and the actor's losses by task."""

    actions: Tensor
    values: Tensor
    alpha: Tensor
    losses: Tensor


def _judge(critic: MultiTaskCritic, rows: _Rows, draw: _Draw, alpha: Tensor, given: Coefficients) -> _Judgement:
    actions = draw.actions.clone()
    with frozen(critic), _products(given, alpha):
        values = combine_critics(critic(rows.observations, actions), given.q_target)
    losses = mean_by_task(actor_loss(draw.log_probs, values, alpha).detach(), rows.tasks)
    return _Judgement(actions, values, alpha, losses)


def _actor_objective(rows: _Rows, draw: _Draw, judged: _Judgement, shares: Tensor, given: Coefficients) -> Tensor:
    """The loss of the actor over the samples that have a share."""
    judged.actions.register_hook(lambda slope: _kept(slope.mT, shares).mT)  # type: ignore[no-untyped-call]
    losses = actor_loss(_kept(draw.log_probs, shares), _kept(judged.values, shares), judged.alpha)
    if rows.batch.wanted is not None and given.demonstration_weight:
        losses = losses + _kept(_cloning(draw.means, judged.values, rows.tasks, rows.batch.wanted, given), shares)
    return (shares * losses).sum() + _balance([draw.route], given)


def _products(given: Coefficients, like: Tensor) -> AbstractContextManager[Any]:
    """Autocast for the option `precision`."""
    return torch.autocast(like.device.type, torch.bfloat16, enabled=given.precision == "bf16")


def _weigh(networks: Networks, given: Coefficients) -> tuple[Tensor, Tensor]:
    """The current entropy coefficient of each task, and the weight of its losses."""
    alpha = networks.log_alpha.detach().exp().to(networks.actor.temperature.dtype)
    alpha = alpha.expand_as(networks.actor.temperature)
    return alpha, weigh_tasks(given.task_weights, alpha)


def _ent_coef_losses(networks: Networks, entropy: Tensor, present: Tensor, given: Coefficients) -> Tensor:
    # A task without samples gives no gradient, and a NaN would destroy the coefficient of a task for good.
    excess = entropy - given.target_entropy
    return ent_coef_loss(networks.log_alpha, torch.where(present & excess.isfinite(), excess, 0))


def _limit(log_alpha: Tensor, given: Coefficients) -> None:
    if given.max_ent_coef is not None:
        log_alpha.data.clamp_(max=math.log(given.max_ent_coef))


@torch.no_grad()
def _target(rows: _Rows, networks: Networks, alpha: Tensor, given: Coefficients) -> tuple[Tensor, Tensor]:
    """The targets of the critics, with shape ``[batch, 1 or bins]``, and the share of them outside of the range."""
    with _products(given, alpha):
        actions, log_probs, *_ = networks.actor.action_log_prob(rows.next_observations, epsilon=given.log_prob_epsilon)
        outputs, _ = networks.critic_target.outputs(rows.next_observations, actions)
    if given.critic_loss == "mse":
        values = combine_critics(outputs.squeeze(-1), given.q_target)
        target = td_target(rows.rewards, rows.dones, values, log_probs, alpha, rows.discounts)
        return target.unsqueeze(-1), torch.zeros_like(target)
    # Each value of the support moves like a target value and keeps its probability.
    bins, moving = outputs.shape[-1], (rows.rewards, rows.dones, log_probs, alpha)
    rewards, dones, log_probs, alpha = (each.unsqueeze(-1) for each in moving)
    discounts = rows.discounts.unsqueeze(-1) if isinstance(rows.discounts, Tensor) else rows.discounts
    values = td_target(rewards, dones, support(bins, given.value_range, like=outputs), log_probs, alpha, discounts)
    probabilities = combine_distributions(outputs, given.value_range, given.q_target)
    target = project(probabilities, values, given.value_range, bins)
    return target, outside_share(probabilities, values, given.value_range)


def _critic_loss(predicted: Tensor, target: Tensor, given: Coefficients) -> Tensor:
    """The loss of the critics for each sample, from their outputs."""
    if given.critic_loss == "categorical":
        return cross_entropy(predicted, target)
    return critic_loss(predicted.squeeze(-1), target.squeeze(-1))


def _cloning(means: Tensor, values: Tensor, tasks: Tensor, wanted: Tensor, given: Coefficients) -> Tensor:
    # Relative to the values, so that the weight does not depend on the scale of the rewards. NaN and infinite means are
    # 0, since in products with 0 they would reach the other tasks.
    scale = given.demonstration_weight * tasks @ mean_by_task(values.detach().abs(), tasks).nan_to_num(posinf=0)
    return scale * cloning_loss(means, wanted)


def _balance(routes: Iterable[Route | None], given: Coefficients) -> Tensor | float:
    """The weighted load-balancing loss, summed over networks."""
    losses = [load_balance(route) for route in routes if route is not None] if given.route_balance else []
    return given.route_balance * torch.stack(losses).sum() if losses else 0.0


def _repair(actor: MultiTaskActor, extreme: Tensor, given: Coefficients) -> None:
    """Reinitializes the parameters of tasks with extreme losses, if the network supports it."""
    reinitialize = getattr(actor.net, "reinitialize", None)
    if reinitialize is not None and given.max_task_loss is not None:
        reinitialize(extreme)


@torch.no_grad()
def follow(targets: nn.Module, sources: nn.Module, tau: float) -> None:
    """Moves target parameters towards the source by a fraction; buffers, such as BatchNorm's, are copied."""
    torch._foreach_lerp_(list(targets.parameters()), list(sources.parameters()), tau)
    for target, source in zip(targets.buffers(), sources.buffers(), strict=True):
        target.copy_(source)


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Freezes the parameters of a module and the loads that its gates balance; gradients still pass through it."""
    learning = [parameter for parameter in module.parameters() if parameter.requires_grad]
    counting = [part for part in module.modules() if isinstance(part, BalancedTopK) and part.training]
    for parameter in learning:
        parameter.requires_grad_(False)
    for gate in counting:
        gate.eval()
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)
        for gate in counting:
            gate.train()


def _paths(kind: str, batch: RouteReplaySamples) -> dict[str, Any]:
    """The keywords of a forward pass along one kind of paths."""
    keywords: dict[str, dict[str, Any]] = {"replayed": {"path": batch.paths}, "sampled": {"sample": True}, "topk": {}}
    return keywords[kind]


def _kept(values: Tensor, shares: Tensor) -> Tensor:
    """Values with shape ``[*, batch]``, 0 for samples without a share; a product with 0 would keep NaN."""
    return torch.where(shares > 0, values, 0)


def _kept_rows(outputs: Tensor, shares: Tensor) -> Tensor:
    """The same for outputs with shape ``[*, batch, n]``."""
    return _kept(outputs, shares.unsqueeze(-1))


def _exceeds(losses: Tensor, limit: float | None) -> Tensor:
    """Marks extreme losses; NaN is extreme."""
    return torch.zeros_like(losses, dtype=torch.bool) if limit is None else ~(losses <= limit)


def _learn(loss: Tensor, optimizer: Optimizer, parts: Iterable[list[Tensor]], max_norm: float | None) -> None:
    """Computes the gradient of a loss and takes a step."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    _step(optimizer, parts, max_norm)


def _step(optimizer: Optimizer, parts: Iterable[list[Tensor]], max_norm: float | None) -> None:
    """Takes an optimizer step, with the gradient of each part of the parameters clipped."""
    if max_norm is not None:
        for part in parts:
            nn.utils.clip_grad_norm_(part, max_norm)
    optimizer.step()


def _own(optimizer: Optimizer, nets: Iterable[nn.Module]) -> list[list[Tensor]]:
    """The parameters of each network in an optimizer, without shared ones."""
    own = set(_parameters(optimizer))
    return [[parameter for parameter in net.parameters() if parameter in own] for net in nets]


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
