"""The range of the actor's standard deviation, cut off or squashed."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("stable_baselines3")

from stable_baselines3.common.vec_env import DummyVecEnv

from dynroute_sb3 import MultiTaskPolicy, MultiTaskSAC, point_tasks
from dynroute_sb3.gaussian import split_output

TANH: dict[str, Any] = {"log_std": "tanh", "log_std_range": (-10, 2)}


def make(**kwargs: Any) -> MultiTaskSAC:
    options: dict[str, Any] = {"network_kwargs": {"hidden_sizes": (8,)}, **kwargs}
    return MultiTaskSAC("MlpPolicy", DummyVecEnv(point_tasks()), policy_kwargs=options, seed=0, device="cpu")


@pytest.mark.parametrize("limit", ["clamp", "tanh"])
def test_every_output_lies_in_the_range(limit: str) -> None:
    raw = torch.linspace(-50, 50, 101, dtype=torch.float64).unsqueeze(-1).requires_grad_()
    mean, log_std = split_output(torch.cat([raw, raw], dim=-1), limit=limit, log_std_range=(-10, 2))
    assert torch.equal(mean, raw)
    expected = [
        min(max(x, -10.0), 2.0) if limit == "clamp" else -4.0 + 6.0 * math.tanh(x) for x in raw.detach()[:, 0].tolist()
    ]
    torch.testing.assert_close(log_std.detach()[:, 0], torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)
    (slope,) = torch.autograd.grad(log_std.sum(), raw)
    assert slope[50] == (1 if limit == "clamp" else 6)


def test_a_policy_keeps_its_range(tmp_path: Path) -> None:
    model, usual = make(**TANH), make()
    observations = torch.tensor(model.get_env().reset())
    usual.policy.load_state_dict(model.policy.state_dict())
    _, log_std, _ = model.actor.distribution(observations)
    assert not torch.equal(log_std, usual.actor.distribution(observations)[1])
    model.learn(200).save(tmp_path / "model")
    model.policy.save(str(tmp_path / "policy"))
    model.actor.save(str(tmp_path / "actor"))
    model.save_checkpoint(tmp_path / "checkpoint")
    expected = model.actor.distribution(observations)[1]
    for policy in (
        MultiTaskSAC.load(tmp_path / "model", device="cpu").policy,
        MultiTaskPolicy.load(str(tmp_path / "policy"), device="cpu"),
        MultiTaskSAC.load_checkpoint(tmp_path / "checkpoint", device="cpu").policy,
    ):
        assert torch.equal(policy.actor.distribution(observations)[1], expected)
    assert torch.equal(type(model.actor).load(str(tmp_path / "actor"), "cpu").distribution(observations)[1], expected)


@pytest.mark.parametrize(
    ("kwargs", "told"),
    [
        ({"log_std": "tan"}, r"`log_std` must be one of 'clamp', 'tanh', got 'tan'; did you mean 'tanh'\?"),
        ({"log_std_range": (2, -10)}, r"`log_std_range` must be \(low, high\) .* got \(2, -10\); are they exchanged\?"),
        ({"log_std_range": (0.0, 0.0)}, r"`log_std_range` must be \(low, high\) with low below high"),
        ({"log_std_range": (-math.inf, 2)}, r"`log_std_range` must be finite, got \(-inf, 2\)"),
        ({"log_std_range": (math.nan, 2)}, r"`log_std_range` must be finite, got \(nan, 2\)"),
        ({"log_std_range": 2.0}, r"`log_std_range` must be a pair of numbers \(low, high\), got 2.0"),
        ({"log_std_range": (1, 2, 3)}, r"`log_std_range` must be a pair of numbers"),
        ({"log_std_range": ("a", "b")}, r"`log_std_range` must be a pair of numbers"),
        ({"log_std_range": (False, True)}, r"`log_std_range` must be a pair of numbers"),
    ],
    ids=str,
)
def test_wrong_ranges_are_told(kwargs: dict[str, Any], told: str) -> None:
    with pytest.raises((ValueError, TypeError), match=told):
        make(**kwargs)


def test_arrays_are_no_range() -> None:
    with pytest.raises(TypeError, match="`log_std_range` must be a pair of numbers"):
        make(log_std_range=np.array([-10, 2]))
