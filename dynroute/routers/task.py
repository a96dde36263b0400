"""Routers that read only the task: learned rows, or fixed heads."""

import torch
from torch import Tensor, nn

from ..arguments import check_count, check_dtype, check_tensor
from ..checks import refuse_where
from ..topology import Topology
from .base import EdgeParameter, Router

__all__ = ["TableRouter", "TaskRouter", "task_one_hot"]


class TableRouter(Router):
    """Routes by the task only, with one learned row of logits for each task.

    Args:
        num_tasks: The number of tasks.
        topology: The graph whose edges are scored.
        noise: As for :class:`Router`.
        dropout: As for :class:`Router`.
        device: The device of the parameters.
        dtype: The type of the parameters.

    The context is a tensor of task ids with shape ``[*]`` (any integer type), or of one-hots with shape
    ``[*, num_tasks]`` (any floating or boolean type).

    Example:
        >>> TableRouter(10, Topology.parallel(4))(torch.tensor([0, 9])).shape
        torch.Size([2, 1, 4])
    """

    def __init__(
        self,
        num_tasks: int,
        topology: Topology,
        *,
        noise: float = 0.0,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(topology, noise=noise, dropout=dropout)
        check_count("num_tasks", num_tasks, at_least=1)
        check_dtype(dtype)
        self.num_tasks = num_tasks
        self.table = nn.Parameter(torch.randn(num_tasks, topology.num_edges, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        """Draws the rows from a standard normal distribution."""
        nn.init.normal_(self.table)

    def score(self, context: Tensor) -> Tensor:
        if _is_one_hot(context, self.num_tasks):
            one_hot = context == 1
            ids = torch.where(one_hot.sum(dim=-1) == 1, one_hot.int().argmax(dim=-1), self.num_tasks)
        else:
            ids = torch.where(context < 0, self.num_tasks, context.long())
        # What is no task has no row of the table, where values are not checked either; -1 would be the last row.
        rows = self.table.index_select(0, ids.reshape(-1)).reshape(*ids.shape, self.table.shape[1])
        return rows.to(torch.promote_types(self.table.dtype, torch.float32))

    def edge_parameters(self) -> list[EdgeParameter]:
        return [EdgeParameter(self, "table", 1, True)]

    def extra_repr(self) -> str:
        return f"num_tasks={self.num_tasks}"


class TaskRouter(Router):
    """Routes task i to node i, the fixed routing of output level (Fig. 2a); nothing is learned.

    Args:
        num_tasks: The number of tasks and of parallel nodes.

    Example:
        >>> TaskRouter(3)(torch.tensor(1))
        tensor([[-inf, 0., -inf]])
    """

    def __init__(self, num_tasks: int) -> None:
        check_count("num_tasks", num_tasks, at_least=1)
        super().__init__(Topology.parallel(num_tasks))
        self.num_tasks = num_tasks

    def score(self, context: Tensor) -> Tensor:
        return task_one_hot(context, self.num_tasks).to(torch.float32).log()

    def extra_repr(self) -> str:
        return f"num_tasks={self.num_tasks}"


def task_one_hot(task: Tensor, num_tasks: int) -> Tensor:
    """Returns the boolean one-hot of a task given as ids (integers) or as one-hot (floating or boolean)."""
    if _is_one_hot(task, num_tasks):
        return task == 1
    return task.unsqueeze(-1) == torch.arange(num_tasks, device=task.device)


def _is_one_hot(task: Tensor, num_tasks: int) -> bool:
    """Whether tasks are given as one-hots, not as ids; raises an error unless they are tasks."""
    check_tensor("task", task)
    if task.is_complex():
        raise TypeError(f"`task` must hold integer ids or a one-hot, got {task.dtype}.")
    if not (task.is_floating_point() or task.dtype == torch.bool):
        refuse_where(
            task,
            lambda task: (task < 0) | (task >= num_tasks),
            lambda index: f"`task` must be in 0..{num_tasks - 1}, got {int(task[index])} at index {index}.",
        )
        return False
    if task.shape[-1:] != (num_tasks,):
        raise ValueError(
            f"`task` must have shape (*, {num_tasks}) as a one-hot, got {tuple(task.shape)}; "
            "task ids are integers: convert them with `.long()`."
        )
    refuse_where(
        task,
        lambda task: (task != (task == 1)).any(dim=-1) | ((task == 1).sum(dim=-1) != 1),
        lambda row: f"`task` must have exactly one 1 in every row of a one-hot, row {row} is {task[row].tolist()}.",
    )
    return True
