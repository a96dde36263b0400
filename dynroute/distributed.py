r"""Expert parallelism: mixtures whose experts are sharded over processes, and gates that share their load.

Each process holds a share of the experts and routes its own batch:

1. Router and gate run on the samples of the process.
2. The processes exchange the number of rows for each expert and send the rows to the experts by an all-to-all, whose
   backward pass is another all-to-all. The host reads the numbers of rows, which are the sizes of the buffers; on a GPU
   this waits for the device once in each pass.
3. Each expert is called on its rows, in training also on an empty batch.
4. The outputs are sent back and mixed by the process of the sample, so weights and `protect` need no communication.

All processes of a group must run a layer equally often and in the same order, forward and backward, even on an empty
batch. This also holds for replay, evaluation and ``torch.no_grad()``.
"""

from collections.abc import Callable, Iterator
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import torch
from torch import Tensor, distributed, nn

from .arguments import check_flag, shown
from .banks import own_memory
from .execution import Pass, call_on_none, coupled, touch
from .gates import Gate
from .levels import ModelRouting, RoutedGraph

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = [
    "RemoteExpert",
    "data_parallel",
    "gather_state_dict",
    "local_parameters",
    "shard_experts",
    "share_load",
]


class RemoteExpert(nn.Module):
    """A placeholder for an expert of another process.

    It has no parameters and ignores the expert's in a state dict, so a whole state dict loads on every process.

    Args:
        process: The rank of the process in the group.

    Example:
        >>> dynroute.distributed.RemoteExpert(process=1)(torch.zeros(5))
        Traceback (most recent call last):
        ...
        RuntimeError: This expert lives on process 1 and runs there; call the layer, or gather the experts ...
    """

    def __init__(self, process: int) -> None:
        super().__init__()
        self.process = process

    def forward(self, x: Tensor) -> Tensor:
        """Raises an error that names the process of the expert."""
        raise RuntimeError(
            f"This expert lives on process {self.process} and runs there; call the layer, or gather the experts with "
            "`dynroute.distributed.gather_state_dict`."
        )

    def constructor_arguments(self) -> dict[str, Any]:
        """Raises an error, since :func:`dynroute.save_pretrained` would save a part of the experts."""
        raise ValueError(
            "`module` must have all its modules on this process to be saved, but some live on others; gather them with "
            "`dynroute.distributed.gather_state_dict` and load them into a module that is not sharded."
        )

    def extra_repr(self) -> str:
        return f"process={self.process}"

    def _load_from_state_dict(self, *arguments: Any, **keywords: Any) -> None:
        pass  # the keys belong to the expert


def shard_experts(model: nn.Module, group: "ProcessGroup | None" = None, *, average: bool = True) -> nn.Module:
    """Shards the experts of mixtures over processes, in place.

    Each process keeps a run of neighbouring experts and a :class:`RemoteExpert` for each of the others. If the number
    of experts is not divisible, the first processes hold one more. Router, gate, shared experts and everything else
    stay on every process. The gates share their load (:func:`share_load`), so the layer computes the same as one
    process would on all batches together.

    Keys of the state dict stay the same, and each process has a part of the whole. Make the optimizer afterwards with
    ``model.parameters()``. Experts are called one after the other, whatever the backend.

    Args:
        model: A :class:`~dynroute.ModelRouting`, or a model that contains some; those inside the modules of another
            routed graph are not sharded. All processes must have the same parameters: use the same seed, load a state
            dict, or see :func:`data_parallel`.
        group: The processes; default: all.
        average: Whether to divide the gradients of experts by the number of processes, as ``DistributedDataParallel``
            and FSDP do for all others. They are then gradients of the mean loss of all processes, else of the sum.

    Returns:
        The model.

    Example:
        >>> from torch import distributed  # torchrun starts the processes, and tells each its rank
        >>> distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
        >>> layer = dynroute.distributed.shard_experts(ModelRouting.ffn(8, 16, num_experts=4))
        >>> layer(torch.randn(3, 8)).shape
        torch.Size([3, 8])
        >>> distributed.destroy_process_group()
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"`model` must be a mixture or a model that contains some, got {shown(model)}.")
    check_flag("average", average)
    rank, size = _position(group)
    mixtures = [graph for graph in _outer_graphs(model) if isinstance(graph, ModelRouting)]
    if not mixtures:
        raise ValueError(
            f"`model` must contain a ModelRouting outside of other routed graphs, a {type(model).__name__} has none."
        )
    for layer in mixtures:
        count = len(layer.nodes) - 1
        if isinstance(layer._execute, _Sharded):
            raise ValueError("`model` must hold whole mixtures, but its experts are sharded already.")
        if count < size:
            raise ValueError(
                f"`model` must have an expert for each of the {size} processes, got a mixture of {count}; "
                "take a smaller group."
            )
    for layer in mixtures:
        _shard(layer, _Sharded(group, rank, _shares(len(layer.nodes) - 1, size), average))
        share_load(layer, group)
    return model


def share_load(model: nn.Module, group: "ProcessGroup | None" = None) -> nn.Module:
    """Makes gates count the samples of all processes, in place.

    The bias of :class:`~dynroute.BalancedTopK` moves by the load of all processes and is the same on each. A capacity
    and :class:`~dynroute.ExpertChoice` apply to the concatenated batches of all processes, whose logits are exchanged;
    ``gate.dropped`` counts the choices of this process. Other gates need no communication.

    Use it with ``DistributedDataParallel`` and FSDP too: otherwise each process of FSDP moves a bias of its own, and in
    DDP only the load of rank 0 counts. :func:`shard_experts` calls it.

    Args:
        model: A gate, or a model that contains some.
        group: The processes; default: all.

    Returns:
        The model.

    Example:
        >>> from torch import distributed
        >>> distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
        >>> net = dynroute.distributed.share_load(ModelRouting.ffn(8, 16, 4, TopK(2, capacity=1.0)))
        >>> net(torch.randn(6, 8)).shape
        torch.Size([6, 8])
        >>> distributed.destroy_process_group()
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"`model` must be a gate or a model that contains some, got {shown(model)}.")
    _position(group)
    gates = [part for part in model.modules() if isinstance(part, Gate)]
    if not gates:
        raise ValueError(f"`model` must contain a gate, a {type(model).__name__} has none.")
    for gate in gates:
        gate._processes = _Processes(group)
    return model


def local_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Returns the parameters of experts that only this process holds, by name.

    They must not be averaged over the processes; pass them to FSDP as ``ignored_params``.

    Args:
        model: A model with layers of :func:`shard_experts`, or without.

    Example:
        >>> dynroute.distributed.local_parameters(ModelRouting.ffn(8, 16, num_experts=4))
        {}
    """
    prefixes = tuple(_own_prefixes(model))
    return {name: parameter for name, parameter in model.named_parameters() if name.startswith(prefixes)}


def data_parallel(
    model: nn.Module, group: "ProcessGroup | None" = None, **options: Any
) -> nn.parallel.DistributedDataParallel:
    """Wraps a model in ``DistributedDataParallel``, excluding sharded experts.

    All other parameters start with the values of the first process and get the mean of all gradients.

    Args:
        model: A model with layers of :func:`shard_experts`.
        group: The processes; default: all.
        **options: Further options of ``DistributedDataParallel``.

    Example:
        >>> from torch import distributed
        >>> distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
        >>> layer = dynroute.distributed.shard_experts(ModelRouting.ffn(8, 16, num_experts=4))
        >>> model = dynroute.distributed.data_parallel(nn.Sequential(nn.Linear(5, 8), layer))
        >>> model(torch.randn(3, 5)).sum().backward()
        >>> distributed.destroy_process_group()
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"`model` must be a module, got {shown(model)}.")
    _position(group)
    prefixes = tuple(_own_prefixes(model))
    named = [*model.named_parameters(), *model.named_buffers()]
    wrapper = nn.parallel.DistributedDataParallel
    ignored = [name for name, _ in named if name.startswith(prefixes)]
    wrapper._set_params_and_buffers_to_ignore_for_model(model, ignored)  # type: ignore[no-untyped-call]
    return wrapper(model, process_group=group, **options)


def gather_state_dict(model: nn.Module) -> dict[str, Any]:
    """Gathers the state dict of the whole model, with the experts of all processes, on each of them.

    It loads into the model on any number of processes, sharded or not. All processes must call this. To store a large
    model without gathering it, pass ``model.state_dict()`` to ``torch.distributed.checkpoint``.

    Args:
        model: A model with layers of :func:`shard_experts`.

    Example:
        >>> from torch import distributed
        >>> distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
        >>> layer = dynroute.distributed.shard_experts(ModelRouting.ffn(8, 16, num_experts=4))
        >>> state = dynroute.distributed.gather_state_dict(layer)
        >>> ModelRouting.ffn(8, 16, num_experts=4).load_state_dict(state)
        <All keys matched successfully>
        >>> distributed.destroy_process_group()
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"`model` must be a module, got {shown(model)}.")
    state: dict[str, Any] = {name: _whole(value) for name, value in model.state_dict().items()}
    like = next((value.device for value in state.values() if isinstance(value, Tensor)), torch.device("cpu"))
    for sharded, prefixes in _sharded_layers(model):
        held = {key: value for key, value in state.items() if key.startswith(prefixes)}
        state |= _exchanged(held, like, sharded.group)
    return state


class _Sharded:
    """Runs the experts of a mixture on the processes where they are."""

    def __init__(self, group: "ProcessGroup | None", rank: int, shares: list[range], average: bool) -> None:
        self.group = group
        self.shares = shares
        """The experts of each process."""
        self.own = shares[rank]
        """The experts of this process."""
        self.average = average

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # copies of a layer share the processes

    def __call__(self, call: Pass, _: str) -> Tensor:
        size = _position(self.group)[1]
        if size != len(self.shares):
            raise ValueError(
                f"`group` must have the {len(self.shares)} processes that the experts were sharded over, got {size}."
            )
        if reason := coupled(call):
            raise ValueError(
                f"`model` must have experts that treat each sample on its own where they are sharded, but {reason}."
            )
        flat = call.flat()
        choices = _choices(flat.read()[:, 0])
        sends, receives, counts = self._counts(torch.bincount(choices.expert, minlength=len(call.nodes) - 1))

        # Rows are indexed by cell and not by sample, so the backward pass need not sum over equal indices in any order.
        cells = flat.x.unsqueeze(1).expand(-1, choices.places, *flat.x.shape[1:]).flatten(0, 1)
        x = cells.index_select(0, choices.cell)
        anchor = torch.zeros((), device=x.device, requires_grad=torch.is_grad_enabled())
        rows = _Exchange.apply(x, anchor, sends, receives, self.group)  # type: ignore[no-untyped-call]
        outputs = self._run(call, rows, counts)
        outputs = _Exchange.apply(outputs, rows, receives, sends, self.group)  # type: ignore[no-untyped-call]

        suitable = None if flat.suitable is None else flat.suitable[:, 0]
        return call.nodes[-1](call.unflat(_mixed(outputs, choices, flat.weights[:, 0], suitable)))

    def _counts(self, sent: Tensor) -> tuple[list[int], list[int], Tensor]:
        """Exchanges the numbers of rows for each expert.

        Args:
            sent: The number of rows that this process sends to each expert.

        Returns:
            The numbers of rows sent to and received from each process, and those received from each process for each
            expert of this one.
        """
        size, own = len(self.shares), len(self.own)
        parts = [sent[share.start : share.stop] for share in self.shares]
        arriving = sent.new_empty(size * own)
        distributed.all_to_all_single(arriving, sent, [own] * size, [len(part) for part in parts], group=self.group)
        counts = arriving.view(size, own)
        return [sum(part.tolist()) for part in parts], counts.sum(dim=1).tolist(), counts

    def _run(self, call: Pass, rows: Tensor, counts: Tensor) -> Tensor:
        """The outputs of the experts of this process, for rows sorted by sending process, then by expert."""
        own = torch.arange(len(self.own), device=rows.device).repeat(len(counts))
        order = own.repeat_interleave(counts.flatten()).argsort(stable=True)
        factor = 1 / len(self.shares) if self.average else 1.0
        entered = _Scaled.apply(rows.index_select(0, order), 1 / factor)  # type: ignore[no-untyped-call]
        outputs: list[Tensor] = []
        idle: list[Callable[[Tensor], Tensor]] = []
        for i, read in zip(self.own, torch.unsafe_split_with_sizes(entered, counts.sum(dim=0).tolist()), strict=True):
            output = call.nodes[i](read) if len(read) or not len(rows) else call_on_none(call.nodes[i], read)
            if output is None:
                idle.append(call.nodes[i])
            else:
                outputs.append(output)
        output = torch.cat(outputs)
        output = touch(output, idle) if idle and torch.is_grad_enabled() else output
        output = _Scaled.apply(output, factor)  # type: ignore[no-untyped-call]
        returned: Tensor = output.index_select(0, order.argsort())
        return returned


class _Choices(NamedTuple):
    """The choices of experts by samples, sorted by expert, and so by process."""

    expert: Tensor
    """The expert of each choice."""

    cell: Tensor
    """The cell of each choice: each sample has `places` of them, one for each choice in order, the last ones empty."""

    places: int
    """The largest number of choices of a sample."""


def _choices(chosen: Tensor) -> _Choices:
    """Lists the choices, from a boolean tensor with shape ``[samples, experts]``."""
    expert, sample = chosen.t().nonzero(as_tuple=True)
    places = int(chosen.sum(dim=1).max()) if len(chosen) else 0
    return _Choices(expert, sample * places + (chosen.cumsum(dim=1) - 1)[sample, expert], places)


def _mixed(outputs: Tensor, choices: _Choices, weights: Tensor, suitable: Tensor | None) -> Tensor:
    """Mixes the outputs of the choices for each sample.

    Args:
        outputs: The output of the expert of each choice.
        choices: The choices.
        weights: The weights, with shape ``[samples, experts]``.
        suitable: The experts that keep their gradient, with the same shape; all if None.
    """
    expert, cell, places = choices
    order = cell.new_full((len(weights) * places,), len(cell))
    order = order.index_copy(0, cell, torch.arange(len(cell), device=cell.device))
    slot = cell.new_zeros(len(order)).index_copy(0, cell, expert).view(len(weights), places)
    padded = torch.cat([outputs, outputs.new_zeros(1, *outputs.shape[1:])])  # empty cells read the row of zeros
    read = padded.index_select(0, order).reshape(len(weights), places, *outputs.shape[1:])
    spread = (len(weights), places) + (1,) * (read.dim() - 2)
    if suitable is not None:  # experts have no shortcut, so the whole gradient is stopped
        read = torch.where(suitable.gather(1, slot).view(spread), read, read.detach())
    return (weights.gather(1, slot).view(spread) * read).sum(dim=1).to(read.dtype)


class _Exchange(torch.autograd.Function):
    """Sends rows to the processes of a group, and their gradients back.

    The anchor requires a gradient, so that every process takes part in the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, anchor: Tensor, sends: list[int], receives: list[int], group: "ProcessGroup | None"
    ) -> Tensor:
        ctx.arguments = receives, sends, group
        arrived = rows.new_empty(sum(receives), *rows.shape[1:])
        distributed.all_to_all_single(arrived, rows.contiguous(), receives, sends, group=group)
        return arrived

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        anchor = torch.zeros((), device=gradient.device, requires_grad=torch.is_grad_enabled())
        return _Exchange.apply(gradient, anchor, *ctx.arguments), None, None, None, None  # type: ignore[no-untyped-call]


class _Scaled(torch.autograd.Function):
    """Returns the values unchanged and scales their gradient.

    Applied behind experts, with the inverse factor before them, it scales the gradients of their parameters and nothing
    else. For higher derivatives the gradient of a gradient is a value again and is not scaled.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return _ScaledGradient.apply(gradients[0], ctx.factor), None  # type: ignore[no-untyped-call]


class _ScaledGradient(torch.autograd.Function):
    """Scales a gradient; see :class:`_Scaled`."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return gradient * factor

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return _Scaled.apply(gradients[0], ctx.factor), None  # type: ignore[no-untyped-call]


class _Processes:
    """The batches of all processes of a group, for a gate."""

    def __init__(self, group: "ProcessGroup | None") -> None:
        self.group = group

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def sum(self, counts: Tensor) -> Tensor:
        """Sums counts over all processes."""
        _position(self.group)
        total = counts.clone()
        distributed.all_reduce(total, group=self.group)
        return total

    def decide(self, choose: Callable[..., Tensor], *values: Tensor) -> Tensor:
        """Applies a function to the samples of all processes; returns the rows of this process."""
        rank, size = _position(self.group)
        samples = [value.detach().reshape(-1, *value.shape[-2:]) for value in values]
        count = torch.tensor([len(samples[0])], device=values[0].device)
        counts = [torch.empty_like(count) for _ in range(size)]
        distributed.all_gather(counts, count, group=self.group)
        sizes = [int(count) for count in counts]
        first = sum(sizes[:rank])
        chosen = choose(*(self._gathered(value, sizes) for value in samples))
        return chosen[first : first + sizes[rank]].reshape(values[0].shape)

    def _gathered(self, samples: Tensor, sizes: list[int]) -> Tensor:
        sent = samples.to(torch.uint8) if samples.dtype == torch.bool else samples
        padded = sent.new_zeros(max(sizes), *sent.shape[1:])  # all_gather needs equal shapes
        padded[: len(sent)] = sent
        parts = [torch.empty_like(padded) for _ in sizes]
        distributed.all_gather(parts, padded, group=self.group)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)]).to(samples.dtype)


def _position(group: "ProcessGroup | None") -> tuple[int, int]:
    """The rank of this process in a group, and the size of the group."""
    if not (distributed.is_available() and distributed.is_initialized()):
        raise ValueError(
            "`group` must be a group of processes, and there is none yet; call torch.distributed.init_process_group."
        )
    if group is not None and not isinstance(group, distributed.ProcessGroup):
        raise TypeError(
            f"`group` must be a torch.distributed.ProcessGroup or None for all processes, got {shown(group)}."
        )
    rank = distributed.get_rank(group)
    if rank < 0:
        raise ValueError("`group` must contain this process, which it does not; call this on its members alone.")
    return rank, distributed.get_world_size(group)


def _shares(count: int, size: int) -> list[range]:
    """The experts of each process, one more for the first ones if the number is not divisible."""
    sizes = [count // size + (i < count % size) for i in range(size)]
    return [range(*bounds) for bounds in pairwise([0, *accumulate(sizes)])]


def _outer_graphs(module: nn.Module) -> Iterator[RoutedGraph]:
    """The routed graphs of a module outside of others; nested ones are not called on every process."""
    if isinstance(module, RoutedGraph):
        yield module
        return
    for part in module.children():
        yield from _outer_graphs(part)


def _sharded_layers(model: nn.Module) -> Iterator[tuple[_Sharded, tuple[str, ...]]]:
    """The sharding of each layer, and the prefixes of the names of its experts on this process."""
    for name, layer in model.named_modules(remove_duplicate=False):
        if isinstance(layer, RoutedGraph) and isinstance(layer._execute, _Sharded):
            place = f"{name}." if name else ""
            yield layer._execute, tuple(f"{place}nodes.{i}." for i in layer._execute.own)


def _own_prefixes(model: nn.Module) -> list[str]:
    return [prefix for _, prefixes in _sharded_layers(model) for prefix in prefixes]


def _whole(value: Any) -> Any:
    """A value of a state dict; FSDP's tensors are gathered."""
    gather = getattr(value, "full_tensor", None)
    return value if gather is None else gather()


def _exchanged(held: dict[str, Any], like: torch.device, group: "ProcessGroup | None") -> dict[str, Any]:
    """Gathers the objects of all processes on each of them."""
    rank, size = _position(group)
    shapes = {key: (value.shape, value.dtype) if isinstance(value, Tensor) else value for key, value in held.items()}
    all_shapes: list[Any] = [None] * size
    distributed.all_gather_object(all_shapes, shapes, group=group)
    gathered: dict[str, Any] = {}
    for process, process_shapes in enumerate(all_shapes):
        for key, shape in process_shapes.items():
            value = held[key] if process == rank else shape
            if isinstance(shape, tuple) and isinstance(shape[0], torch.Size):
                if process != rank:
                    value = torch.empty(shape[0], dtype=shape[1], device=like)
                value = value.contiguous()
                source = process if group is None else distributed.get_global_rank(group, process)
                distributed.broadcast(value, source, group=group)
            gathered[key] = value
    return gathered


def _shard(layer: ModelRouting, sharded: _Sharded) -> None:
    own = [layer.nodes[i] for i in sharded.own]
    nodes: list[nn.Module] = [RemoteExpert(process) for process, share in enumerate(sharded.shares) for _ in share]
    nodes[sharded.own.start : sharded.own.stop] = own
    for expert in own:
        own_memory(expert)
    layer.arrange([*nodes, layer.nodes[-1]], layer.topology)
    layer._execute = sharded
