"""The plasticity of a model's critics, measured on its replay buffer."""

import torch

from dynroute.arguments import check_count
from dynroute.plasticity import Plasticity, measure

from .attributes import MultiTaskAttributes
from .randomness import random_state, set_random_state

__all__ = ["critic_plasticity"]


def critic_plasticity(
    model: MultiTaskAttributes, batch_size: int = 1024, *, tau: float = 0.025, share: float = 0.99
) -> list[Plasticity]:
    """Measures each critic of a model on transitions of its replay buffer, along the best routes.

    The state of all random generators is restored afterwards, so training is not affected.

    Args:
        model: A MultiTaskSAC with transitions in its buffer, for instance loaded from a checkpoint with environments.
        batch_size: The largest number of transitions, which also bounds the effective rank. A balanced buffer gives the
            same number for each task.
        tau: See :func:`dynroute.plasticity.dormant_units`.
        share: See :func:`dynroute.plasticity.effective_rank`.

    Example:
        >>> model = MultiTaskSAC("BRCPolicy", DummyVecEnv(point_tasks()), learning_starts=8).learn(40)
        >>> [measures.features for measures in critic_plasticity(model, 64)]
        [256, 256]
    """
    critic, buffer = model.critic, model.replay_buffer
    if buffer is None or not buffer.size():
        raise ValueError(
            "`model` must have transitions in its replay buffer, got none; a checkpoint that is loaded with its "
            "environments has them, `save` leaves them out."
        )
    check_count("batch_size", batch_size, at_least=1)
    if buffer.balanced:
        batch_size = max(batch_size // buffer.num_tasks, 1) * buffer.num_tasks
    before = random_state()
    batch = buffer.sample(batch_size, env=model._vec_normalize_env)
    modes = {module: module.training for module in critic.modules()}
    critic.eval()
    try:
        observations, actions = (part.to(model.actor.temperature.dtype) for part in (batch.observations, batch.actions))
        state, task = critic.task_space.split(observations)
        inputs = torch.cat([critic.normalizer(state), actions], dim=-1)
        return [
            measure(net, inputs, task, tau=tau, share=share, **({"sample": False} if routing else {}))
            for net, routing in zip(critic.nets, critic.routing, strict=True)
        ]
    finally:
        for module, training in modes.items():
            module.training = training
        set_random_state(before)
