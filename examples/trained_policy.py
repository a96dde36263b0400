"""Evaluate and film a policy that was trained from scratch.

SAC trained one network for the ten tasks of MT10, with fixed goals and no demonstrations, in 80,000 steps of each. It
solves all of them. The folder `policy_mt10_fixed` beside this program is 600 kB: what to construct, and the
parameters as safetensors. Loading it runs no code. The program prints the success of each task, and with the name of
one it also films it:

    python examples/trained_policy.py door-open

A film needs Pillow, and without a display MUJOCO_GL=egl or MUJOCO_GL=osmesa.
"""

import sys
from pathlib import Path
from typing import Any

import torch

from dynroute import from_pretrained
from dynroute_metaworld import EvaluationResult, evaluate, make_envs

FILES = Path(__file__).parent / "policy_mt10_fixed"
GOALS: dict[str, Any] = {"goals": "fixed", "seed": 2}  # those of the training
STATE = 39


class Policy:
    """Acts by the mean of a network's distribution. `evaluate` takes anything with the method `predict` of SB3."""

    def __init__(self, folder: Path = FILES) -> None:
        self.network = from_pretrained(folder)

    def predict(self, observations: Any, state: Any = None, **_: Any) -> tuple[Any, Any]:
        """Computes actions from states that end with the one-hots of their tasks."""
        states, tasks = torch.as_tensor(observations).split([STATE, observations.shape[1] - STATE], dim=1)
        with torch.inference_mode():
            mean, _ = self.network(states, tasks).chunk(2, dim=1)
        return mean.tanh().numpy(), state


def film(policy: Policy, task: str, steps: int) -> Path:
    """Writes a GIF of an episode, with a picture of every second step."""
    from PIL import Image

    env = make_envs("MT10", horizon=steps, only=[task], render_mode="rgb_array", **GOALS)
    pictures, observations, path = [], env.reset(), Path(f"{task}.gif")
    for step in range(steps):
        if step % 2 == 0:
            pictures.append(Image.fromarray(env.get_images()[0]))
        observations, *_ = env.step(policy.predict(observations)[0])
    env.close()
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=50, loop=0)
    return path


def main(steps: int = 200, task: str | None = None) -> EvaluationResult:
    """Evaluates the policy in all tasks, in an episode of so many steps each, and films it in one of them."""
    policy = Policy()
    result = evaluate(policy, "MT10", horizon=steps, episodes=1, **GOALS)  # all its episodes with fixed goals are equal
    print(result)
    if task is not None:
        print(f"see {film(policy, task, steps)}")
    return result


if __name__ == "__main__":
    main(task=sys.argv[1] if len(sys.argv) > 1 else None)
