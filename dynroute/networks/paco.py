"""PaCo: every layer is a composition of shared parameter sets, with weights for each task."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Unpack

import torch
from torch import Tensor, nn

from ..arguments import Factory, check_count, check_dtype, check_generator, check_sizes, check_tensor
from ..checks import hides_values
from ..compositional import CompositionalLinear
from ..route import Route
from .network import Network, Routing, check_table, set_hidden_init, set_output_range

__all__ = ["PaCo"]


class PaCo(Network):
    r"""An MLP whose every layer is composed for the task (parameter-compositional, PaCo).

    .. math:: y = \operatorname{ReLU}\Bigl(\sum_k w_{\mathcal T k}\, (W_k x + b_k)\Bigr)

    The output layer is composed too, without ReLU. The only parameters of a single task are its row of the table
    :math:`w`, which is unconstrained and drawn from N(0, 1). Networks can share the table; the paper's actor and
    critics do.

    In eager mode on the CPU a batch is computed task by task, with layers composed once per task. Elsewhere no value
    may be read, and all sets are computed for every sample.

    Args:
        state_features: The width of the state, without the task.
        num_tasks: The number of tasks.
        out_features: The width of the output.
        num_sets: The number K of parameter sets.
        hidden_sizes: The widths of the hidden layers.
        composition: The table of another network to share, with shape ``[num_tasks, num_sets]``; a new one if None.
        hidden_init: The initialization of the hidden layers: "torch", or "released" for U(-1/sqrt(n), 1/sqrt(n)), where
            n is the width of a layer's output, and biases of 0.1, as the released code of D2R draws D2R. All sets still
            start equal, and the table is not changed.
        output_init: The output layer is drawn from U(-output_init, output_init), 0.003 as in that code, so that most
            policies start close to a standard Gaussian although each layer multiplies by the sum of a task's row;
            torch's initialization if None.
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
        hidden_init: str = "torch",
        output_init: float | None = 3e-3,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(state_features, num_tasks, out_features)
        factory: Factory = {"device": device, "dtype": dtype}
        check_count("num_sets", num_sets, at_least=1)
        check_sizes("hidden_sizes", hidden_sizes, at_least=0)
        check_dtype(dtype)
        if composition is None:
            composition = nn.Parameter(torch.randn(num_tasks, num_sets, **factory))
        self.num_sets, self.hidden_sizes = num_sets, hidden_sizes
        self.hidden_init, self.output_init = hidden_init, output_init
        self.layers = nn.ModuleList(
            CompositionalLinear(num_sets, width, following, **factory)
            for width, following in pairwise((state_features, *hidden_sizes, out_features))
        )
        check_table("composition", composition, (num_tasks, num_sets), "sets", self.layers)
        self.composition = composition
        set_output_range(self.layers, output_init)
        set_hidden_init(self, hidden_init, outputs=[self.layers[-1]])

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

    @property
    def shared(self) -> dict[str, nn.Parameter]:
        return {"composition": self.composition}

    @torch.no_grad()
    def reinitialize(self, extreme: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Replaces the rows of tasks with extreme losses by random convex combinations of the other rows.

        No value is read, so an update on another device need not wait. If every task is extreme, the table is left
        unchanged.

        Args:
            extreme: The rows to replace, boolean with shape ``[num_tasks]``.
            generator: The random generator.

        Returns:
            The coefficients with shape ``[num_tasks, num_tasks]``, a row for each task that is replaced and a column
            for each task that it is made of; the columns of extreme tasks are 0.
        """
        check_tensor("extreme", extreme)
        check_generator(generator)
        if extreme.dtype != torch.bool or extreme.shape != (self.num_tasks,):
            raise ValueError(
                f"`extreme` must be boolean with shape ({self.num_tasks},), a value for each task, "
                f"got {extreme.dtype} with shape {tuple(extreme.shape)}."
            )
        table = self.composition
        # Normalized exponentials are uniform over all convex combinations.
        shares = torch.empty(self.num_tasks, self.num_tasks, device=table.device, dtype=table.dtype)
        shares = shares.exponential_(generator=generator) * ~extreme
        shares = shares / shares.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(table.dtype).tiny)
        rows = shares @ table.masked_fill(extreme.unsqueeze(-1), 0)  # an extreme row may hold NaN
        replaced = extreme & ~extreme.all()
        table.copy_(torch.where(replaced.unsqueeze(-1), rows, table))
        return shares


def _groups(one_hot: Tensor, num_sets: int) -> tuple[Tensor, Tensor, Tensor] | None:
    """Groups the samples by task, if that costs less than computing all sets for each sample.

    Returns:
        The tasks that occur; the samples of each, with shape ``[tasks, n]``, short groups padded with their first
        sample; and the place of each sample in that table. None if grouping does not pay or no value may be read.
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
