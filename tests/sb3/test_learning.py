"""It learns: every network of the registry reaches four goals that contradict each other, told apart by the task alone.

A point that stays where it is has a return of about -14, and one that goes straight to its goal about -1.2. No task may
stay behind: success and return are asked of each. A run ends when two evaluations in a row find that all is learned;
on another processor that may take longer, for which there are more steps than here are needed. A network that does not
read the task shows that this can fail. One critic takes two thirds of the time of two, and the networks are told apart
as well.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("stable_baselines3")

from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv

from dynroute import networks
from dynroute_sb3 import MultiTaskActorCriticPolicy, MultiTaskSAC, point_tasks

TASKS = 4
EPISODES = 10
SUCCESS = 0.8
RETURN = -5.0

TRUNK: dict[str, Any] = {"trunk_sizes": (64, 64), "width": 32}
SIZES: dict[str, dict[str, Any]] = {
    "mt-sac": {"hidden_sizes": (64, 64)},
    "mh-sac": {"hidden_sizes": (64, 64)},
    "moe": {"num_experts": 3, "width": 32, "depth": 2, "router_sizes": (32,)},
    # Few paths would let two tasks begin with the same one, which they leave late: the state decides nothing.
    "hard": {**TRUNK, "layer_sizes": (8, 8)},
    "sm": {**TRUNK, "layer_sizes": (2, 2), "width": 16, "router_sizes": (32,)},
    "sm-shallow": {**TRUNK, "router_sizes": (32,)},
    "care": {"embedding_features": 8, "num_encoders": 3, "hidden_sizes": (64, 64)}
    | {f"{part}_sizes": (32,) for part in ("encoder", "context", "gate")},
    "paco": {"num_sets": 4, "hidden_sizes": (128, 128)},
    "d2r": {**TRUNK, "num_modules": 3, "router_sizes": (64,)},
    "d2r-released": {**TRUNK, "num_modules": 3, "router_sizes": (64,)},
    "d2r-layer": {"layer_sizes": (2, 2), "width": 64, "trunk_sizes": (128,), "router_sizes": (128,)},
    "d2r-model": {"num_models": 4, "model_depth": 1, "width": 64, "trunk_sizes": (128,), "router_sizes": (128,)},
    "brc": {"width": 64, "blocks": 1, "embedding_features": 8},
    "scalemoe-feature": {"num_experts": 3, "width": 32, "embedding_features": 8},
    "scalemoe-output": {"num_experts": 3, "width": 32, "embedding_features": 8},
}
STEPS = 8000  # of all environments together
FIRST, EVERY = 1200, 200  # the steps of the first evaluation, and those from one to the next


def decaying(rate: float) -> Any:
    """A learning rate that lets what was learned settle: it falls from 2,000 steps on."""
    return lambda left: rate * min(1, 4 / 3 * left)


def train(
    network: Any,
    sizes: dict[str, Any],
    *,
    n_critics: int = 1,
    rate: float = 3e-3,
    steps: int = STEPS,
    policy: dict[str, Any] | None = None,
    **options: Any,
) -> MultiTaskSAC:
    model = MultiTaskSAC(
        "MultiTaskPolicy",
        DummyVecEnv(point_tasks() * 2),
        learning_rate=decaying(rate),
        gamma=0.9,
        tau=0.02,
        batch_size=64,
        buffer_size=20_000,
        learning_starts=400,
        ent_coef="auto_0.1",
        policy_kwargs={"network": network, "network_kwargs": sizes, "n_critics": n_critics, **(policy or {})},
        seed=0,
        device="cpu",
        **options,
    )
    return model.learn(steps, callback=UntilLearned())


def evaluate(model: BaseAlgorithm) -> tuple[np.ndarray, np.ndarray]:
    """The mean return and the rate of success of each task, in new episodes along the best routes."""
    env = DummyVecEnv(point_tasks() * EPISODES)
    env.seed(1000)
    observations, returns = env.reset(), np.zeros(EPISODES * TASKS)
    for _ in range(20):
        actions, _ = model.predict(observations, deterministic=True)
        observations, rewards, dones, infos = env.step(actions)
        returns += rewards
    assert dones.all()
    successes = np.array([info["is_success"] for info in infos])
    return tuple(each.reshape(EPISODES, TASKS).mean(axis=0) for each in (returns, successes))


def has_learned(returns: np.ndarray, successes: np.ndarray) -> bool:
    return bool((successes >= SUCCESS).all() and (returns >= RETURN).all())


class UntilLearned(BaseCallback):
    """Ends learning when every task is learned, by two evaluations in a row."""

    in_a_row = 0

    def _on_step(self) -> bool:
        if self.num_timesteps >= FIRST and self.num_timesteps % EVERY == 0:
            self.in_a_row = self.in_a_row + 1 if has_learned(*evaluate(self.model)) else 0
        return self.in_a_row < 2


def assert_learned(model: BaseAlgorithm) -> None:
    returns, successes = evaluate(model)
    assert has_learned(returns, successes), f"returns {returns.round(2)}, successes {successes.round(2)}"


@pytest.mark.slow
@pytest.mark.parametrize("name", networks.available())
def test_every_network_learns(name: str) -> None:
    model = train(
        name,
        SIZES[name],
        n_critics=2 if name == "mt-sac" else 1,
        rate=2e-3 if name == "paco" else 3e-3,
    )
    assert_learned(model)


@pytest.mark.slow
def test_products_in_16_bits_learn() -> None:
    assert_learned(train("moe", SIZES["moe"], precision="bf16"))


BRC: dict[str, Any] = {
    "critic_loss": "categorical",
    "q_target": "mean",
    "normalize_returns": True,
    "shared_ent_coef": True,
    "ent_coef_beta1": 0.5,
    "target_entropy": "auto_0.5",
    "replay_buffer_kwargs": {"balanced": False},
    "policy": {"optimizer_class": torch.optim.AdamW, "log_std": "tanh", "log_std_range": (-10, 2)},
}


@pytest.mark.slow
def test_the_learner_of_brc_learns_whatever_the_scale_of_rewards() -> None:
    assert_learned(train("mt-sac", SIZES["mt-sac"], n_critics=2, reward_scale=100.0, **BRC))


class Blind(nn.Module):
    """A network that does not read the task."""

    def __init__(self, state_features: int, num_tasks: int, out_features: int) -> None:
        super().__init__()
        sizes = (state_features, 64, 64)
        hidden = [layer for i in range(2) for layer in (nn.Linear(sizes[i], sizes[i + 1]), nn.ReLU())]
        self.layers = nn.Sequential(*hidden, nn.Linear(64, out_features))

    def forward(self, state: Tensor, task: Tensor, *, return_route: bool = False, **_: Any) -> Any:
        output = self.layers(state)
        return (output, None) if return_route else output


@pytest.mark.slow
def test_a_network_that_does_not_know_the_task_does_not_learn() -> None:
    model = train(Blind, {}, steps=4000)  # twice what an MLP needs that reads the task
    returns, successes = evaluate(model)
    assert successes.mean() <= 0.5
    assert returns.mean() < 2 * RETURN
    with pytest.raises(AssertionError, match="successes"):
        assert_learned(model)


def ppo(name: str, sizes: dict[str, Any], steps: int = 40, epochs: int = 8) -> PPO:
    """PPO whose rollouts have so many steps of each environment, in two batches."""
    return PPO(
        MultiTaskActorCriticPolicy,
        DummyVecEnv(point_tasks() * 2),
        learning_rate=lambda left: 2e-3 * left,
        gamma=0.9,
        gae_lambda=0.9,
        n_steps=steps,
        batch_size=4 * steps,
        n_epochs=epochs,
        policy_kwargs={"num_tasks": TASKS, "network": name, "network_kwargs": sizes, "log_std_init": -0.5},
        seed=0,
        device="cpu",
    )


@pytest.mark.slow
def test_ppo_learns() -> None:
    assert_learned(ppo("moe", SIZES["moe"]).learn(16_000, UntilLearned()))


@pytest.mark.parametrize("name", networks.available())
def test_ppo_takes_every_network(name: str, tmp_path: Path) -> None:
    model = ppo(name, SIZES[name], steps=10, epochs=1)
    parts = {"actor": model.policy.mlp_extractor.actor, "value": model.policy.mlp_extractor.value}
    before = {name: [p.detach().clone() for p in part.parameters()] for name, part in parts.items()}
    model.learn(160)  # two rollouts: the rate of the last update is 0
    for name, part in parts.items():
        assert not all(map(torch.equal, part.parameters(), before[name])), name
    assert (model.policy.log_std != -0.5).all()
    observations = DummyVecEnv(point_tasks()).reset()
    expected, _ = model.predict(observations, deterministic=True)
    assert expected.shape == (TASKS, 2)

    model.save(tmp_path / "model")
    loaded = PPO.load(tmp_path / "model", env=DummyVecEnv(point_tasks() * 2), device="cpu")
    assert np.array_equal(loaded.predict(observations, deterministic=True)[0], expected)
    loaded.learn(80)
    model.policy.save(str(tmp_path / "policy"))
    policy = MultiTaskActorCriticPolicy.load(str(tmp_path / "policy"), device="cpu")
    assert np.array_equal(policy.predict(observations, deterministic=True)[0], expected)
