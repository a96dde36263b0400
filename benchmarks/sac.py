"""Times an update of multi-task SAC with each network beside MT-SAC's, and the overhead of a step.

    python -m benchmarks.sac

The sizes are those of MT10: states of 39, actions of 4, ten tasks, batches of 1280, two critics.
"""

import argparse
import functools
import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import Tensor, nn
from torch.nn import functional as F

from dynroute_sb3 import MultiTaskSAC, OneHotTask
from dynroute_sb3.options import PRECISIONS

from .outputs import parse, session, write
from .timing import Job, interleave, medians, ratios

STATE, TASKS, ACTIONS, BATCH = 39, 10, 4, 1280
NETWORKS = ("mt-sac", "mh-sac", "moe", "hard", "sm", "sm-shallow", "care", "paco", "d2r", "d2r-layer", "d2r-model")


class Still(gym.Env[Any, Any]):
    """An environment with constant observations."""

    observation_space = spaces.Box(-1, 1, (STATE,), dtype=np.float32)
    action_space = spaces.Box(-1, 1, (ACTIONS,), dtype=np.float32)
    observation = np.zeros(STATE, dtype=np.float32)

    def reset(self, **_: Any) -> tuple[Any, dict[str, Any]]:
        return self.observation, {}

    def step(self, _: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.observation, 0.0, False, False, {}


def make(
    network: str, *, batch_size: int = BATCH, device: torch.device | str = "cpu", sizes: Any = None, **options: Any
) -> MultiTaskSAC:
    """Makes a model with the sizes of MT10 and a buffer of random transitions."""
    model = MultiTaskSAC(
        "MultiTaskPolicy",
        still_tasks(),
        policy_kwargs={"network": network, "network_kwargs": sizes},
        buffer_size=20_000,
        batch_size=batch_size,
        max_grad_norm=1.0,
        max_task_loss=3e3,
        task_weights="alpha-sum",
        device=device,
        **options,
    )
    fill(model)
    return model


def still_tasks() -> DummyVecEnv:
    """Makes ten tasks of the constant environment."""
    return DummyVecEnv([lambda task=task: OneHotTask(Still(), task, TASKS) for task in range(TASKS)])


def fill(model: MultiTaskSAC) -> None:
    """Puts random transitions into the buffer of a model."""
    model.set_logger(Logger(None, []))
    model._last_obs = model.env.reset()
    rng = np.random.default_rng(0)
    one_hots = np.eye(TASKS, dtype=np.float32)
    for _ in range(200):
        old, new = (np.hstack([rng.normal(size=(TASKS, STATE)), one_hots]).astype(np.float32) for _ in range(2))
        action, reward = rng.uniform(-1, 1, (TASKS, ACTIONS)), rng.normal(size=TASKS)
        model._sample_action(10**9, None, TASKS)
        model.replay_buffer.add(old, new, action, reward, np.zeros(TASKS), [{}] * TASKS, paths=model._behaviour_paths)


def time_updates(seconds: float) -> list[dict[str, Any]]:
    """Times an update with each network in both precisions, alternating with mt-sac in float32."""
    rows = []
    base = make("mt-sac")
    for network in NETWORKS:
        jobs: dict[str, Job] = {
            precision: functools.partial(make(network, precision=precision).train, 1, BATCH) for precision in PRECISIONS
        }
        times = interleave({**jobs, "mt-sac": functools.partial(base.train, 1, BATCH)}, seconds=seconds)
        to_base, to_own = ratios(times, "mt-sac"), ratios(times, "float32")
        row = {"network": network, "ms": medians(times), "to mt-sac": to_base["float32"]}
        row |= {"bf16 to mt-sac": to_base["bf16"], "bf16 to float32": to_own["bf16"]}
        print(
            f"{network:12} {row['ms']['float32']:7.1f} ms  {row['to mt-sac']:.2f} x mt-sac; "
            f"bf16 {row['bf16 to mt-sac']:.2f} x mt-sac in float32, {row['bf16 to float32']:.2f} x float32",
            flush=True,
        )
        rows.append(row)
    return rows


def bare_update() -> Job:
    """Makes a job of an update of multi-task SAC in plain torch, with an entropy coefficient for each task."""

    def perceptron(inputs: int, outputs: int) -> nn.Sequential:
        widths = [inputs, *[400] * 5]
        layers = [part for sizes in itertools.pairwise(widths) for part in (nn.Linear(*sizes), nn.ReLU())]
        return nn.Sequential(*layers, nn.Linear(400, outputs))

    actor = perceptron(STATE + TASKS, 2 * ACTIONS)
    critics, targets = ([perceptron(STATE + TASKS + ACTIONS, 1) for _ in range(2)] for _ in range(2))
    log_alpha = torch.zeros(TASKS, requires_grad=True)
    critic_parameters = [p for critic in critics for p in critic.parameters()]
    optimizers = [torch.optim.Adam(p, 3e-4) for p in ([log_alpha], list(actor.parameters()), critic_parameters)]
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(20_000, 2 * (STATE + TASKS) + ACTIONS + 1)).astype(np.float32)

    def act(observation: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = actor(observation).chunk(2, -1)
        normal = torch.distributions.Normal(mean, log_std.clamp(-20, 2).exp())
        raw = normal.rsample()
        return raw.tanh(), (normal.log_prob(raw) - torch.log(1 - raw.tanh() ** 2 + 1e-6)).sum(-1)

    def update() -> None:
        batch = torch.from_numpy(rows[rng.integers(0, len(rows), BATCH)])
        observation, following, action, reward = batch.split([STATE + TASKS, STATE + TASKS, ACTIONS, 1], 1)
        task = torch.arange(TASKS).repeat_interleave(BATCH // TASKS)
        new_action, log_prob = act(observation)
        alpha_loss = -(log_alpha[task] * (log_prob + -ACTIONS).detach()).mean()
        alpha = log_alpha.detach().exp()[task]
        optimizers[0].zero_grad()
        alpha_loss.backward()
        optimizers[0].step()
        with torch.no_grad():
            next_action, next_log_prob = act(following)
            values = torch.cat([target(torch.cat([following, next_action], 1)) for target in targets], 1)
            returns = reward.squeeze(1) + 0.99 * (values.amin(1) - alpha * next_log_prob)
        inputs = torch.cat([observation, action], 1)
        critic_loss = sum(F.mse_loss(critic(inputs).squeeze(1), returns) for critic in critics)
        optimizers[2].zero_grad()
        critic_loss.backward()
        optimizers[2].step()
        inputs = torch.cat([observation, new_action], 1)
        values = torch.cat([critic(inputs) for critic in critics], 1).amin(1)
        actor_loss = (alpha * log_prob - values).mean()
        optimizers[1].zero_grad()
        actor_loss.backward()
        optimizers[1].step()
        with torch.no_grad():
            for critic, target in zip(critics, targets, strict=True):
                for source, parameter in zip(critic.parameters(), target.parameters(), strict=True):
                    parameter.mul_(0.995).add_(source, alpha=0.005)

    return update


def time_step(network: str, steps: int = 300) -> float:
    """Times a step of collect_rollouts without the environments and the actor, in milliseconds."""
    model = make(network)
    model.num_timesteps = model.learning_starts + 1
    inside = [0.0]

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                inside[0] += time.perf_counter() - start

        return call

    model.env.step = timed(model.env.step)
    model.actor.net.forward = timed(model.actor.net.forward)
    model.gradient_steps = 0
    model.learning_starts = 0
    taken = []
    for _ in range(steps // 10):
        inside[0], start = 0.0, time.perf_counter()
        model.learn(10 * TASKS, reset_num_timesteps=False, log_interval=10**9)
        taken.append(1e3 * (time.perf_counter() - start - inside[0]) / 10)
    return statistics.median(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20, help="duration of each comparison")
    options = parse(parser, "sac.json")
    started = session("benchmarks.sac")
    torch.manual_seed(0)

    base = make("mt-sac")
    times = interleave({"mt-sac": lambda: base.train(1, BATCH), "bare loop": bare_update()}, seconds=options.seconds)
    bare = {"ms": medians(times), "to bare loop": ratios(times, "bare loop")["mt-sac"]}
    print(f"mt-sac       {bare['ms']['mt-sac']:7.1f} ms  {bare['to bare loop']:.2f} x a bare torch loop", flush=True)
    steps = {network: time_step(network) for network in ("mt-sac", "d2r")}
    print(f"a step outside environments and network: {steps} ms", flush=True)
    rows = time_updates(options.seconds)
    result = {"session": started, "threads": torch.get_num_threads(), "torch": torch.__version__}
    write(options.output, {**result, "bare": bare, "step": steps, "rows": rows})


if __name__ == "__main__":
    main()
