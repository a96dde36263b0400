"""Optimizers keep no denormal moments, which are slow, and their steps stay what they were."""

from unittest import mock

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

pytest.importorskip("stable_baselines3")

from sac_models import make_model

from dynroute_sb3 import MultiTaskSAC
from dynroute_sb3.denormals import CLEAR_EVERY, clear_denormals

TINY = torch.finfo(torch.float32).tiny


def denormals(*optimizers: Optimizer) -> int:
    values = [value for optimizer in optimizers for state in optimizer.state.values() for value in state.values()]
    return sum(int(((value != 0) & (value.abs() < TINY)).sum()) for value in values)


@pytest.mark.parametrize("kind", [Adam, AdamW, lambda parameters: SGD(parameters, momentum=0.9)])
def test_only_denormal_numbers_change(kind: type[Adam]) -> None:
    weight = nn.Parameter(torch.zeros(5))
    optimizer = kind([weight])
    weight.grad = torch.ones(5)
    optimizer.step()
    wanted = torch.tensor([1.0, -2 * TINY, 0.0, torch.nan, -torch.inf])
    for value in optimizer.state[weight].values():
        if value.shape == (5,):
            value.copy_(wanted)
            value[2] = TINY / 3
    clear_denormals(optimizer, None)
    moments = [value for value in optimizer.state[weight].values() if value.shape == (5,)]
    assert moments
    assert all(torch.equal(value.nan_to_num(7), wanted.nan_to_num(7)) for value in moments)


def optimizers(model: MultiTaskSAC) -> list[Optimizer]:
    every = (model.actor.optimizer, model.critic.optimizer, model.policy.shared_optimizer)
    return [optimizer for optimizer in every if optimizer is not None]


def with_a_dead_unit(policy: str) -> MultiTaskSAC:
    """A model with parameters that have no gradient, in each optimizer, after their moments have become denormal."""
    model = make_model(policy, learning_starts=80)
    model.learn(84)
    for optimizer in optimizers(model):
        parameter = optimizer.param_groups[0]["params"][0]
        parameter.register_hook(lambda slope: slope.index_fill(0, torch.tensor([0]), 0))
        for moment in ("exp_avg", "exp_avg_sq"):
            optimizer.state[parameter][moment][0] = TINY / 3
    torch.manual_seed(0)
    model._n_updates = CLEAR_EVERY - 8
    return model


@pytest.mark.parametrize(("policy", "count"), [("MlpPolicy", 2), ("PaCoPolicy", 3)])  # it has shared parameters
def test_a_model_learns_the_same_without_them(policy: str, count: int) -> None:
    cleared = with_a_dead_unit(policy)
    cleared.train(40, 16)
    kept = with_a_dead_unit(policy)
    with mock.patch("dynroute_sb3.sac.clear_denormals"):
        kept.train(40, 16)
    assert len(optimizers(kept)) == count
    assert all(denormals(optimizer) > 0 for optimizer in optimizers(kept))
    assert denormals(*optimizers(cleared)) == 0
    for now, before in zip(cleared.policy.state_dict().values(), kept.policy.state_dict().values(), strict=True):
        assert torch.equal(now, before)
