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


def with_a_dead_unit() -> MultiTaskSAC:
    """A model with a unit that never answers, after its moments have become denormal."""
    model = make_model("MlpPolicy", learning_starts=80)
    model.learn(200)
    for net, optimizer in ((model.actor.net, model.actor.optimizer), (model.critic.nets[0], model.critic.optimizer)):
        layer = next(module for module in net.modules() if isinstance(module, nn.Linear) and module.out_features == 8)
        with torch.no_grad():
            layer.bias[3] = -1e4
        for parameter in (layer.weight, layer.bias):
            for moment in ("exp_avg", "exp_avg_sq"):
                optimizer.state[parameter][moment][3] = TINY / 3
    torch.manual_seed(0)
    return model


def test_a_model_learns_the_same_without_them() -> None:
    cleared = with_a_dead_unit()
    cleared.train(2 * CLEAR_EVERY, 16)
    kept = with_a_dead_unit()
    with mock.patch("dynroute_sb3.sac.clear_denormals"):
        kept.train(2 * CLEAR_EVERY, 16)
    assert denormals(kept.actor.optimizer, kept.critic.optimizer) > 0
    assert denormals(cleared.actor.optimizer, cleared.critic.optimizer) == 0
    for now, before in zip(cleared.policy.state_dict().values(), kept.policy.state_dict().values(), strict=True):
        assert torch.equal(now, before)
