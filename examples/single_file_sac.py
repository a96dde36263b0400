"""Soft actor-critic with routing in a single file.

In the manner of CleanRL. Four tasks push a point to four goals, and only the one-hot at the end of an observation tells
them apart. The network of the actor alone is new: it draws routes when it acts and learns, and takes the best ones in
evaluation. The environments need the extra `sb3`.
"""

import copy

import numpy as np
import torch
from torch import Tensor, nn

from dynroute import ModuleRouting
from dynroute_sb3 import point_tasks


def act(actor: ModuleRouting, observation: Tensor) -> tuple[Tensor, Tensor]:
    """Draws an action and its log-probability; in evaluation the action is the mean."""
    mean, log_std = actor(*observation.split(4, dim=-1)).chunk(2, dim=-1)  # the input and the context: state and task
    normal = torch.distributions.Normal(mean, (3.5 * log_std.tanh() - 1.5).exp())
    raw = normal.rsample() if actor.training else mean
    return raw.tanh(), (normal.log_prob(raw) - torch.log(1 - raw.tanh().square() + 1e-6)).sum(dim=-1)


def values(critics: nn.ModuleList, *inputs: Tensor) -> Tensor:
    """Two estimates of the return."""
    return torch.cat([critic(torch.cat(inputs, dim=-1)) for critic in critics], dim=-1)


@torch.no_grad()
def play(actor: ModuleRouting, envs: list) -> tuple[list[Tensor], float]:
    """Plays an episode of each task; returns observations, actions, rewards, next observations and the success."""
    first = [env.reset(seed=int(torch.randint(2**31, ())))[0] for env in envs]
    observation, rows = torch.tensor(np.stack(first)), []
    for _ in range(20):
        action, _ = act(actor, observation)
        results = [env.step(each.numpy()) for env, each in zip(envs, action, strict=True)]
        following, reward = torch.tensor(np.stack([each[0] for each in results])), [each[1] for each in results]
        rows.append((observation, action, torch.tensor(reward), following))
        observation = following
    return [torch.cat(parts) for parts in zip(*rows, strict=True)], np.mean([each[4]["is_success"] for each in results])


def main(steps: int = 1500) -> tuple[float, float]:
    """Trains, and returns the success before and after."""
    torch.manual_seed(0)
    envs, actor = [make() for make in point_tasks()], ModuleRouting.mlp(4, 32, 6, 4, context_features=4)
    layers = [[nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1)] for _ in range(2)]
    critics, log_alpha = nn.ModuleList(nn.Sequential(*each) for each in layers), torch.tensor(-2.0, requires_grad=True)
    target, memory, before = copy.deepcopy(critics), play(actor, envs)[0], play(actor.eval(), envs)[1]
    critic_optimizer = torch.optim.Adam(critics.parameters(), lr=2e-3)
    actor_optimizer = torch.optim.Adam([*actor.train().parameters(), log_alpha], lr=2e-3)
    for step in range(steps):
        if step % 20 == 0:
            memory = [torch.cat(parts) for parts in zip(memory, play(actor, envs)[0], strict=True)]
        rows = torch.randint(len(memory[0]), (128,))
        observation, action, reward, following = (part[rows] for part in memory)
        alpha = log_alpha.exp()
        with torch.no_grad():  # episodes end by time alone; else 0.9 is multiplied by 1 - terminated
            drawn, log_prob = act(actor, following)
            goal = reward + 0.9 * (values(target, following, drawn).amin(dim=-1) - alpha * log_prob)
        critic_optimizer.zero_grad()
        (values(critics, observation, action) - goal.unsqueeze(-1)).square().mean().backward()
        critic_optimizer.step()

        actor_optimizer.zero_grad()
        drawn, log_prob = act(actor, observation)
        value = values(critics, observation, drawn).amin(dim=-1)
        (alpha.detach() * log_prob - value - alpha * (log_prob.detach() - 2)).mean().backward()  # and the temperature
        actor_optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(list(target.parameters()), list(critics.parameters()), 0.01)
    after = np.mean([play(actor.eval(), envs)[1] for _ in range(10)])
    print(f"success of the best actions: {before:.0%} before, {after:.0%} after {steps} updates")
    return before, after


if __name__ == "__main__":
    main()
