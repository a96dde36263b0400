"""PaCo: every layer is a composition of parameter sets that all tasks share, by weights of the task's own."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Unpack

import torch
from torch import Tensor, nn

from ..arguments import check_count, check_sizes
from ..checks import hides_values
from ..compositional import CompositionalLinear
from ..route import Route
from .network import Network, Routing

__all__ = ["PaCo"]


class PaCo(Network):
    r"""A perceptron whose every layer is composed for the task (parameter-compositional, PaCo).

    .. math:: y = \operatorname{ReLU}\Big(\sum_k w_{\mathcal T k}\, (W_k x + b_k)\Big)

    The output layer is composed too, without ReLU. The table :math:`w`, unconstrained and drawn from N(0, 1), is all
    that a task has of its own; networks can share it, and the paper's actor and critics do.

    In eager mode on the CPU a batch is computed task by task, each layer composed once for each; elsewhere, where no
    value may be read, all sets are computed for every sample.

    Args:
        state_features: The width of the state, without the task.
        num_tasks: The number of tasks.
        out_features: The width of the output.
        num_sets: The number K of parameter sets.
        hidden_sizes: The widths of the hidden layers.
        composition: The table of another network to share, with shape ``[num_tasks, num_sets]``; a new one if None.
        device: The device of the parameters.
        dtype: The type of the parameters.

    Example:
        >>> actor = PaCo(39, 10, 8)
        >>> critic = PaCo(43, 10, 1, composition=actor.composition)
        >>> critic.composition is actor.composition
        True
    """

    def __init__(
        self,
        state_features: int,
        num_tasks: int,
        out_features: int,
        *,
        num_sets: int = 5,
        hidden_sizes: Sequence[int] = (400,) * 3,
        composition: nn.Parameter | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(state_features, num_tasks, out_features)
        check_count("num_sets", num_sets, at_least=1)
        check_sizes("hidden_sizes", hidden_sizes, at_least=0)
        if composition is not None and not isinstance(composition, nn.Parameter):
            raise TypeError(
                f"`composition` must be a parameter, that of another network, got {type(composition).__name__}."
            )
        if composition is None:
            composition = nn.Parameter(torch.randn(num_tasks, num_sets, device=device, dtype=dtype))
        elif composition.shape != (num_tasks, num_sets):
            raise ValueError(
                f"`composition` must have shape ({num_tasks}, {num_sets}), a row for each task, "
                f"got {tuple(composition.shape)}; share the table of a network with as many tasks and sets."
            )
        self.num_sets = num_sets
        self.composition = composition
        self.layers = nn.ModuleList(
            CompositionalLinear(num_sets, width, following, device=device, dtype=dtype)
            for width, following in pairwise((state_features, *hidden_sizes, out_features))
        )
        if composition.dtype != self.layers[0].weight.dtype:
            raise TypeError(
                f"`composition` must have the type of the parameters {self.layers[0].weight.dtype}, "
                f"got {composition.dtype}; pass `dtype` to both networks."
            )

    def compute(self, state: Tensor, task: Tensor, **routing: Unpack[Routing]) -> tuple[Tensor, Route | None]:
        flat, one_hot = state.reshape(-1, self.state_features), task.reshape(-1, self.num_tasks)
        groups = _groups(one_hot, self.num_sets)
        if groups is None:
            output = self._layers(flat, one_hot @ self.composition)
        else:
            tasks, rows, places = groups
            output = self._layers(flat[rows], self.composition[tasks]).flatten(0, 1)[places]
        return output.reshape(*state.shape[:-1], self.out_features), None

    def _layers(self, x: Tensor, composition: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers):
            x = layer(x.relu() if i > 0 else x, composition)
        return x

    @torch.no_grad()
    def reinitialize(
        self, task: int, *, excluded: Sequence[int] = (), generator: torch.Generator | None = None
    ) -> Tensor:
        """Sets the row of a task to a random convex combination of those of others, as PaCo does after extreme losses.

        Args:
            task: The task whose row is replaced.
            excluded: Tasks that do not take part, for instance since their losses are extreme too.
            generator: The source of randomness.

        Returns:
            The coefficients of all tasks, zero for the task itself and those excluded.
        """
        for name, index in (("task", task), *((f"excluded[{i}]", other) for i, other in enumerate(excluded))):
            if not 0 <= index < self.num_tasks:
                raise ValueError(f"`{name}` must be in 0..{self.num_tasks - 1}, got {index}.")
        others = [i for i in range(self.num_tasks) if i != task and i not in excluded]
        if not others:
            raise ValueError(f"`excluded` must leave a task beside task {task}, got all of them.")
        table = self.composition
        coefficients = table.new_zeros(self.num_tasks)
        # Normalized exponentials are uniform over all convex combinations.
        shares = torch.empty(len(others), device=table.device, dtype=table.dtype).exponential_(generator=generator)
        coefficients[others] = shares / shares.sum()
        table[task] = coefficients[others] @ table[others]  # the other rows may hold anything, NaN included
        return coefficients


def _groups(one_hot: Tensor, num_sets: int) -> tuple[Tensor, Tensor, Tensor] | None:
    """The samples grouped by task, where that costs less than to compute all sets for each of them.

    Returns:
        The tasks that occur; the samples of each, with shape ``[tasks, n]``, short groups filled with their first one;
        and the place of each sample in that table. None where a composition for each sample is cheaper, or where no
        value may be read.
    """
    batch = len(one_hot)
    if batch < 2 or hides_values(one_hot):
        return None
    ids = one_hot.argmax(dim=-1)
    sizes = torch.bincount(ids, minlength=one_hot.shape[1])
    tasks = sizes.nonzero().squeeze(1)
    longest = int(sizes.max())
    if len(tasks) * longest > num_sets * batch:
        return None

    order = ids.argsort(stable=True)
    starts = sizes.cumsum(0) - sizes
    within = torch.arange(batch, device=ids.device) - starts[ids[order]]  # the place of each sample in its group
    group = torch.searchsorted(tasks, ids[order])
    rows = order[starts[tasks]].unsqueeze(1).repeat(1, longest)
    rows[group, within] = order
    places = torch.empty_like(order)
    places[order] = group * longest + within
    return tasks, rows, places
