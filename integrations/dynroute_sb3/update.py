"""One update of multi-task SAC: the coefficients of entropy, the critics, the actor, the targets.

No value is read on the way, so that on a GPU an update never waits for the one before. The order is that of SB3's SAC.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from .losses import mean_by_task, path_temperature, sample_shares, td_target, weigh_tasks
from .parallel import side_by_side
from .replay import RouteReplaySamples

if TYPE_CHECKING:
    from .sac import MultiTaskSAC

__all__ = ["TaskReport", "entropy_coefficients", "follow", "update"]


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


def update(model: "MultiTaskSAC", batch: RouteReplaySamples) -> TaskReport:
    """Updates a model from a batch."""
    policy, actor, critic = model.policy, model.actor, model.critic
    dtype = actor.temperature.dtype
    observations, actions, next_observations = (
        tensor.to(dtype) for tensor in (batch.observations, batch.actions, batch.next_observations)
    )
    rewards, dones = (tensor.to(dtype).squeeze(-1) for tensor in (batch.rewards, batch.dones))
    tasks = policy.task_space.split(observations)[1]

    alpha = entropy_coefficients(model).to(dtype)
    weights = weigh_tasks(model.task_weights, alpha)
    actor.temperature.copy_(path_temperature(model.route_temperature, alpha))
    alpha_of_sample, temperature = tasks @ alpha, tasks @ actor.temperature

    # Whatever is drawn has a source of its own, so that the order in which networks run makes no difference.
    device, count = observations.device, len(critic.nets)
    apart = device.type != "cpu" or bool(model.compile_networks)  # a GPU does not wait, and a compiler is one
    for_actor, for_next, *for_critics = (_generator(device) for _ in range(2 + count))

    def act() -> tuple[Tensor, Tensor, Tensor]:
        path = batch.paths if model.actor_paths == "replayed" else None
        sample = model.actor_paths == "sampled"
        return actor.action_log_prob(observations, path=path, sample=sample, generator=for_actor)

    def act_next() -> tuple[Tensor, Tensor, Tensor]:
        with torch.no_grad():
            return actor.action_log_prob(next_observations, generator=for_next)

    # The actor's loss has the same actions and paths as that of the coefficients.
    (new_actions, log_probs, means), (next_actions, next_log_probs, _) = side_by_side([act, act_next], apart=apart)
    mean_log_probs, present = mean_by_task(log_probs.detach(), tasks), tasks.any(dim=0)
    waits = model._n_updates < model.actor_starts  # until then the critics alone learn
    ent_coef_loss = torch.zeros_like(mean_log_probs)
    if not waits:
        ent_coef_loss = _update_entropy_coefficients(model, mean_log_probs, present)

    def evaluate(i: int) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            next_value = model.critic_target.values(i, next_observations, next_actions)
        value = critic.values(
            i,
            observations,
            actions,
            path=batch.paths if model.critic_paths == "replayed" else None,
            sample=model.critic_paths == "sampled",
            temperature=temperature,
            generator=None if model.compile_networks else for_critics[i],
        )
        return next_value, value

    pairs = side_by_side([partial(evaluate, i) for i in range(count)], apart=apart)
    next_values, values = (torch.stack(part) for part in zip(*pairs, strict=True))
    target = td_target(model.reward_scale * rewards, dones, next_values, next_log_probs, alpha_of_sample, model.gamma)
    critic_losses = mean_by_task((values.detach() - target).square().sum(dim=0), tasks)
    extreme = present & _exceeds(critic_losses, model.max_task_loss)
    shares = sample_shares(weights, present & ~extreme, tasks)
    shared = _parameters(policy.shared_optimizer)
    _zero(policy.shared_optimizer, critic.optimizer, actor.optimizer)

    def improve(i: int) -> None:
        # What is left out is replaced, not only multiplied by zero: a NaN would survive that.
        errors = torch.where(shares > 0, pairs[i][1] - target, 0)
        own = [parameter for parameter in critic.nets[i].parameters() if _own(parameter, shared)]
        _backward((shares * errors.square()).sum(), [*own, *shared])
        _clip(own, model.max_grad_norm)

    # Where the gradients of both critics are added to the same tensor, the order would make a difference.
    side_by_side([partial(improve, i) for i in range(count)], apart=apart or bool(shared))
    critic.optimizer.step()

    # The gradient of the values with respect to the actions comes first, alone: nothing of it reaches the critics, nor
    # what they share with the actor.
    def judge(i: int) -> tuple[Tensor, Tensor]:
        chosen = new_actions.detach().requires_grad_()
        chosen_values = critic.values(i, observations, chosen)
        (slope,) = torch.autograd.grad(chosen_values.sum(), chosen)
        return chosen_values.detach(), slope

    def improve_actor(extreme: Tensor) -> tuple[Tensor, Tensor]:
        judged = side_by_side([partial(judge, i) for i in range(count)], apart=apart)
        chosen_values, slopes = (torch.stack(part) for part in zip(*judged, strict=True))
        chosen_values, lowest = chosen_values.min(dim=0)
        slope = slopes.gather(0, lowest[None, :, None].expand(1, *new_actions.shape)).squeeze(0)
        actor_losses = mean_by_task(alpha_of_sample * log_probs.detach() - chosen_values, tasks)
        extreme = extreme | (present & _exceeds(actor_losses, model.max_task_loss))
        shares = sample_shares(weights, present & ~extreme, tasks)
        taken = shares > 0
        surrogate = torch.where(taken, alpha_of_sample * log_probs, 0)
        surrogate = surrogate - torch.where(taken.unsqueeze(-1), slope.nan_to_num() * new_actions, 0).sum(dim=-1)
        if batch.wanted is not None and (weight := _demonstration_weight(model)):
            # Relative to the values, or its weight would depend on the scale of the rewards.
            scale = tasks @ mean_by_task(chosen_values.nan_to_num().abs(), tasks)
            errors = (means[: len(batch.wanted)] - batch.wanted.to(dtype)).square().sum(dim=-1)
            errors = nn.functional.pad(errors, (0, len(scale) - len(errors)))
            surrogate = surrogate + torch.where(taken, weight * scale * errors, 0)
        _backward((shares * surrogate).sum(), [*_parameters(actor.optimizer), *shared])
        _clip(_parameters(actor.optimizer), model.max_grad_norm)
        actor.optimizer.step()
        return actor_losses, extreme

    if waits:  # with all that belongs to it, what it shares with the critics included
        return TaskReport(
            torch.zeros_like(critic_losses), critic_losses, ent_coef_loss, -mean_log_probs, extreme.to(dtype)
        )
    actor_losses, extreme = improve_actor(extreme)
    if policy.shared_optimizer is not None:
        _clip(shared, model.max_grad_norm)
        policy.shared_optimizer.step()

    reinitialize = getattr(actor.net, "reinitialize", None)
    if reinitialize is not None and model.max_task_loss is not None:
        reinitialize(extreme)
    return TaskReport(actor_losses, critic_losses, ent_coef_loss, -mean_log_probs, extreme.to(dtype))


def entropy_coefficients(model: "MultiTaskSAC") -> Tensor:
    """The coefficient of entropy of each task, without a gradient."""
    if model.log_ent_coef is not None:
        return model.log_ent_coef.detach().exp()
    assert model.num_tasks is not None
    return model.ent_coef_tensor.expand(model.num_tasks)


@torch.no_grad()
def follow(targets: nn.Module, sources: nn.Module, tau: float) -> None:
    """Moves target parameters towards others by a fraction; statistics, such as those of a BatchNorm, are copied."""
    torch._foreach_lerp_(list(targets.parameters()), list(sources.parameters()), tau)
    for target, source in zip(targets.buffers(), sources.buffers(), strict=True):
        target.copy_(source)


def _update_entropy_coefficients(model: "MultiTaskSAC", log_probs: Tensor, present: Tensor) -> Tensor:
    r"""A step on the loss of each task's coefficient (Eq. 2, in log alpha); the losses are returned.

    .. math:: J(\alpha_{\mathcal T}) = -\log \alpha_{\mathcal T} \, \mathbb E [\log \pi(a | s) + \bar{\mathcal H}]
    """
    if model.ent_coef_optimizer is None or model.log_ent_coef is None:
        return torch.zeros_like(log_probs)
    errors = log_probs + model.target_entropy  # type: ignore[operator]
    losses = -model.log_ent_coef * torch.where(present & errors.isfinite(), errors, 0)
    model.ent_coef_optimizer.zero_grad(set_to_none=True)
    _backward(losses.mean(), [model.log_ent_coef])
    model.ent_coef_optimizer.step()
    if model.max_ent_coef is not None:
        model.log_ent_coef.data.clamp_(max=math.log(model.max_ent_coef))
    return losses.detach()


def _demonstration_weight(model: "MultiTaskSAC") -> float:
    """The weight of the cloning term, which falls to 0 in a line from where the actor starts to learn."""
    if model.demonstration_decay is None:
        return model.demonstration_weight
    done = (model._n_updates - model.actor_starts) / model.demonstration_decay
    return model.demonstration_weight * min(max(1 - done, 0), 1)


def _generator(device: torch.device) -> torch.Generator:
    """A source of randomness that the global one decides, without a value of the device being read."""
    return torch.Generator(device).manual_seed(int(np.random.randint(2**62)))


def _clip(parameters: list[nn.Parameter], norm: float | None) -> None:
    """Clips the norm of the gradient of some parameters together, if there is a limit."""
    if norm is not None:
        nn.utils.clip_grad_norm_(parameters, norm)


def _backward(loss: Tensor, parameters: Sequence[Tensor]) -> None:
    torch.autograd.backward(loss, inputs=parameters)


def _exceeds(losses: Tensor, limit: float | None) -> Tensor:
    """Which losses are extreme; a NaN is."""
    return torch.zeros_like(losses, dtype=torch.bool) if limit is None else ~(losses <= limit)


def _parameters(optimizer: torch.optim.Optimizer | None) -> list[nn.Parameter]:
    return [] if optimizer is None else [p for group in optimizer.param_groups for p in group["params"]]


def _own(parameter: nn.Parameter, shared: list[nn.Parameter]) -> bool:
    return all(parameter is not other for other in shared)


def _zero(*optimizers: torch.optim.Optimizer | None) -> None:
    for optimizer in optimizers:
        if optimizer is not None:
            optimizer.zero_grad(set_to_none=True)
