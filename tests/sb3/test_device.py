"""An update reads no value from its device and its networks compile; held on the CPU."""

import copy
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from device_cases import SIZES, SMALL, NoReading
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import DummyVecEnv

import dynroute
from dynroute.networks import available
from dynroute_sb3 import MultiTaskSAC, point_tasks
from dynroute_sb3.update import follow, update


def make(network: str, *, steps: int = 80, **options: Any) -> MultiTaskSAC:
    kwargs = {"network": network, "network_kwargs": SIZES[network], **options.pop("policy_kwargs", {})}
    env = DummyVecEnv(point_tasks())
    model = MultiTaskSAC(
        "MultiTaskPolicy",
        env,
        policy_kwargs=kwargs,
        batch_size=32,
        seed=0,
        max_grad_norm=1.0,
        max_task_loss=3e3,
        task_weights="alpha-sum",
        max_ent_coef=1.0,
        learning_starts=1000,
        **options,
    )
    model.set_logger(Logger(None, []))
    return model.learn(steps) if steps else model


BRC = {"critic_loss": "categorical", "q_target": "mean", "normalize_returns": True, "shared_ent_coef": True}


@pytest.mark.parametrize(
    ("network", "learner"), [*((name, {}) for name in available()), ("mt-sac", BRC), ("d2r", BRC)], ids=str
)
def test_an_update_reads_no_value(network: str, learner: dict[str, Any]) -> None:
    model = make(network, **learner)
    batch = model.replay_buffer.sample(32)
    model.policy.set_training_mode(True)
    before = copy.deepcopy(model.actor.net.state_dict())
    dynroute.set_checks(False)
    try:
        with NoReading():
            report = update(batch, model._networks(), model._coefficients())
            follow(model.critic_target, model.critic, 0.005)
            model.report.add(report)
    finally:
        dynroute.set_checks(None)
    assert any(not torch.equal(before[name], value) for name, value in model.actor.net.state_dict().items())


VALUES, MASK = torch.ones(2), torch.tensor([True, False])
READINGS: dict[str, Callable[[], object]] = {
    "item": VALUES.sum().item,
    "bool": lambda: bool(VALUES.sum()),
    "nonzero": VALUES.nonzero,
    "masked_select": lambda: VALUES.masked_select(MASK),
    "mask": lambda: VALUES[MASK],
    "mask that is written": lambda: operator.setitem(VALUES.clone(), MASK, 2.0),
    "equal": lambda: torch.equal(VALUES, VALUES),
    "bincount": MASK.long().bincount,
    "unique": VALUES.unique,
    "unique of rows": lambda: VALUES.unique(dim=0),
    "unique_consecutive": VALUES.unique_consecutive,
    "repeat_interleave": lambda: VALUES.repeat_interleave(MASK.long()),
    "tensor_split": lambda: VALUES.tensor_split(torch.tensor([1])),
    "tolist": lambda: VALUES.tolist(),
    "numpy": lambda: VALUES.numpy(),
    "asarray": lambda: np.asarray(VALUES),
    "cpu": lambda: VALUES.cpu(),
    "to": lambda: VALUES.to("meta").to("cpu"),  # from the CPU itself it would be no copy
}


@pytest.mark.parametrize("reading", READINGS)
def test_a_value_that_is_read_is_noticed(reading: str) -> None:
    with NoReading(), pytest.raises(AssertionError, match="reads values"):
        READINGS[reading]()


def test_sizes_that_are_known_are_no_reading() -> None:
    with NoReading():
        picked = VALUES[torch.tensor([1])]
        repeated = VALUES.repeat_interleave(MASK.long(), output_size=1)
    assert (len(picked), len(repeated)) == (1, 1)


@pytest.mark.slow
@pytest.mark.usefixtures("compiling")
@pytest.mark.parametrize("network", SMALL)
def test_compiled_networks_learn_the_same(network: str) -> None:
    # Compiled code draws from another source of randomness: here, what is compared draws nothing.
    options: dict[str, Any] = {"critic_paths": "topk", "policy_kwargs": {"n_critics": 1}}  # one is compiled as two are
    models = [make(network, **options), make(network, compile_networks="aot_eager", steps=0, **options)]
    np.random.seed(0)
    batch = models[0].replay_buffer.sample(32)
    reports = []
    for model in models:
        torch.manual_seed(0)
        model.policy.set_training_mode(True)
        reports.append(update(batch, model._networks(), model._coefficients()))
    for name, value in vars(reports[0]).items():
        torch.testing.assert_close(getattr(reports[1], name), value, rtol=1e-4, atol=1e-5, msg=name)
    plain, compiled = (model.actor.net.state_dict() for model in models)
    assert list(plain) == list(compiled)
    for name, value in plain.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.slow
@pytest.mark.usefixtures("compiling")
@pytest.mark.parametrize("network", ["mt-sac", "d2r"])
def test_compiled_networks_take_rollouts_and_batches(network: str) -> None:
    model = make(network, compile_networks="eager", policy_kwargs={"n_critics": 1})
    model.learning_starts = 0
    model.learn(40, reset_num_timesteps=False)
    assert model._n_updates == 10
