r"""n-step returns: critics learn from the rewards of several steps and bootstrap from the state after them.

.. math:: y = \sum_{i < k} \gamma^i r_i + \gamma^k (1 - d) \Bigl( Q(s_k, a') - \alpha \log \pi(a' | s_k) \Bigr),
          \qquad k \le n

An episode that ends earlier has a smaller k, and so has one whose later steps are not stored yet. As in SB3, the
entropy of the actions in between is left out, and nothing corrects that an earlier policy chose them. A ring that holds
hardly more than the transitions of one vector step cannot tell which follow one another: k is then 1, with a warning.
"""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["look_ahead"]

TOGETHER = 128
"""The distances that are looked up at once, which bounds the memory of many environments."""


def look_ahead(
    rows: Tensor,
    back: Tensor,
    tasks: Tensor,
    places: Tensor,
    newer: Tensor,
    *,
    state_features: int,
    reach: int,
    n_steps: int,
    gamma: float,
    normalize: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Extends transitions along their episodes. No value is read on the host.

    Args:
        rows: The rings of all tasks, with shape ``[tasks, capacity, width]``: state, next state, action, reward, and
            whether the episode ended there.
        back: The distance of each transition to the one before it in its ring, with shape ``[tasks, capacity]``;
            0 if there is none.
        tasks: The tasks of the transitions to extend, with shape ``[batch]``.
        places: Their places in the rings.
        newer: The number of transitions of the same task that are newer than each.
        state_features: The width of a state.
        reach: The largest distance in `back`.
        n_steps: The largest number of steps.
        gamma: The discount factor.
        normalize: Normalizes rewards; they stay as they are if None.

    Returns:
        Rows with the state and the action of the first step, the discounted sum of rewards, and the next state and the
        end of the last step; and the discounts of the values of these next states, with shape ``[batch, 1]``.

    Example:
        >>> from dynroute_sb3.multi_step import look_ahead
        >>> ring = torch.tensor([[[0.0, 1.0, 0.5, 8.0, 0.0], [1.0, 2.0, 0.5, 4.0, 0.0]]])  # from state 0 to 1, and to 2
        >>> back, first = torch.tensor([[0, 1]]), torch.tensor([0])
        >>> look_ahead(ring, back, first, first, first + 1, state_features=1, reach=1, n_steps=3, gamma=0.5)
        (tensor([[ 0.0000,  2.0000,  0.5000, 10.0000,  0.0000]]), tensor([[0.2500]]))
    """
    n, capacity = state_features, rows.shape[1]
    first = last = rows[tasks, places]
    rewards = first[:, -2] if normalize is None else normalize(first[:, -2])
    discounts = torch.ones_like(rewards)
    distances = torch.split(torch.arange(1, reach + 1, device=places.device), TOGETHER)
    for _ in range(n_steps - 1):
        moved = torch.zeros_like(places)
        for some in distances:
            follows = back[tasks[:, None], (places[:, None] + some) % capacity] == some
            follows &= newer[:, None] >= some
            moved = torch.maximum(moved, torch.where(follows, some, 0).amax(dim=1))  # at most one transition follows
        found = moved > 0
        places, newer = (places + moved) % capacity, newer - moved
        last = rows[tasks, places]
        discounts = torch.where(found, gamma * discounts, discounts)
        added = last[:, -2] if normalize is None else normalize(last[:, -2])
        rewards = torch.where(found, rewards + discounts * added, rewards)
    sums = [first[:, :n], last[:, n : 2 * n], first[:, 2 * n : -2], rewards[:, None], last[:, -1:]]
    return torch.cat(sums, dim=1), (gamma * discounts).unsqueeze(1)
