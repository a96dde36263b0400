"""The sparse backend: every node runs on the rows that need it, for training and inference with any modules.

A module is called on the samples whose output needs it, so it must treat each sample separately. Everything between the
modules can be differentiated twice, so hooks, parametrizations, autocast and second derivatives work as in torch. The
equations are the reference's, on rows (see `rows`) instead of whole batches.
"""

import sys
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from ..functional import rsg
from ..topology import Topology
from .fused.double_backward import wants_more
from .fused.linear import lean_modules, linear_node
from .plan import Pass
from .reference import check_shortcut, check_sources, refuse_output, run_reference
from .rows import Rows, rows_of

__all__ = ["NUMBERS_FROM", "ROWS_FROM", "call_on_none", "needs_no_rows", "run_sparse", "touch"]

ROWS_FROM = 64
"""The smallest batch for which inference sorts rows by node; below it, needed nodes run for all samples."""

NUMBERS_FROM = 400_000
"""Rows of narrow nodes are sorted if the batch times the squared number of destinations times the width reaches this.

Measured on one core: three destinations of 16 features do not pay for 1,000 samples, eight of 128 pay from 64 on.
"""


def run_sparse(call: Pass) -> Tensor:
    """Runs a routed graph on the rows that its output needs."""
    count, output = call.batch.numel(), None
    if _run_jointly(call.nodes):
        output = _run_rows(call, everywhere=True) if count and call.plan.is_mixture else None
    elif count and torch.is_grad_enabled():
        output = _run_rows(call)
    elif count == 1:
        output = _run_one(call)
    elif count:
        consecutive = call.plan.layers is not None  # the sources of a node
        output = _run_few(call) if consecutive and needs_no_rows(call) else None
        output = _run_rows(call) if output is None else output
    return run_reference(call) if output is None else output


def needs_no_rows(call: Pass) -> bool:
    """Whether inference is faster if needed nodes run for all samples, since calls cost more than arithmetic."""
    batch, linear = call.batch.numel(), None
    if batch >= ROWS_FROM and not call.plan.is_mixture:
        linear = linear_node(call.nodes[0])
    if linear is None:
        return batch < ROWS_FROM
    return batch * len(call.plan.topology.destinations) ** 2 * linear.linear.out_features < NUMBERS_FROM


def _run_jointly(nodes: Sequence[Callable[[Tensor], Tensor]]) -> bool:
    """Whether a node synchronizes with other processes, and so must run even if no sample needs it.

    A module of FSDP gathers its parameters when it is called, and a module of DDP reduces its gradients.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return False
    fsdp = sys.modules.get("torch.distributed.fsdp")  # no module uses it unless it is imported
    kinds = [getattr(fsdp, name, None) for name in ("FSDPModule", "FullyShardedDataParallel")]
    joint = (nn.parallel.DistributedDataParallel, *(kind for kind in kinds if isinstance(kind, type)))
    return any(isinstance(part, joint) for node in nodes if isinstance(node, nn.Module) for part in node.modules())


def _run_rows(call: Pass, *, everywhere: bool = False) -> Tensor | None:
    """Runs the sparse form; returns None if no source of a row has run, so that its width is unknown."""
    plan, topology = call.plan, call.plan.topology
    flat, rows, state = call.flat(), rows_of(call), _Outputs(call)
    edge_weights = flat.weights.reshape(-1).index_select(0, rows.slots)
    stops = None if flat.suitable is None else ~flat.suitable.reshape(-1).index_select(0, rows.slots)

    unused: list[Callable[[Tensor], Tensor]] = []
    for group in plan.groups:
        counts, parents = rows.counts[group[0] : group[1]], topology.parents[group[0]]
        if not parents:
            inputs = carried = _entered(flat.x, rows, group)
        else:
            sources = state.sources(parents, group[0])
            if sources is None:
                if any(counts):
                    return None
                unused += [call.nodes[node] for node in range(*group)]
                continue
            inputs, carried = _mixed(rows, group, sources, edge_weights, stops, separate=call.protect == "input")
        for i, node in enumerate(range(*group)):
            module = call.nodes[node]
            output: Any = None
            if counts[i]:
                output = module(inputs[i])
            elif everywhere or (torch.is_grad_enabled() and _reads_others(module)):
                output = call_on_none(module, inputs[i])
            if not isinstance(output, Tensor):
                if counts[i] or output is not None:
                    refuse_output(f"node {node}", output)
                unused.append(module)
                continue
            if node == topology.num_nodes - 1:
                output = touch(output, unused) if unused and torch.is_grad_enabled() else output
                return call.unflat(output)
            if parents and plan.shortcuts[node]:
                check_shortcut(node, carried[i], output)
                output = carried[i] + output
            state.add(node, output, carried[i] if parents and plan.shortcuts[node] else None)
    raise AssertionError("the last node is the output")


def _reads_others(module: Callable[[Tensor], Tensor]) -> bool:
    """Whether a module may give a gradient to tensors that are not its parameters, such as weights that others make."""
    if not isinstance(module, nn.Module):
        return True
    if any(nn.parameter.is_lazy(parameter) for parameter in module.parameters()):  # a call makes them
        return True
    held = {"_parameters", "_buffers", "_modules"}
    values = [value for part in module.modules() for name, value in vars(part).items() if name not in held]
    listed = chain.from_iterable(value for value in values if isinstance(value, list | tuple))
    named = chain.from_iterable(value.values() for value in values if isinstance(value, dict))
    return any(map(_learns, chain(values, listed, named)))


def _learns(value: object) -> bool:
    """Whether a value that a module holds takes gradients."""
    parameters = value.parameters() if isinstance(value, nn.Module) else (value,)
    return any(isinstance(parameter, Tensor) and parameter.requires_grad for parameter in parameters)


def call_on_none(module: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor | None:
    """Calls a module on an empty batch, so that its parameters receive zero gradients; returns None if that fails."""
    try:
        output: Tensor = module(inputs)
        return output
    except Exception:  # modules may fail on an empty batch in any way
        return None


def touch(output: Tensor, modules: Sequence[Callable[[Tensor], Tensor]]) -> Tensor:
    """Gives zero gradients to the parameters of unused modules, since optimizers treat None differently."""
    parts = [module for module in modules if isinstance(module, nn.Module)]
    learning = [parameter for module in parts for parameter in module.parameters() if parameter.requires_grad]
    touched: Tensor = _Touch.apply(output, *learning)  # type: ignore[no-untyped-call]
    return touched


class _Touch(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(output: Tensor, *parameters: Tensor) -> Tensor:
        return output.clone()  # torch forbids changes in place of a view from here

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Any) -> None:
        ctx.parameters = inputs[1:]  # not saved: their values do not matter, and a step may change them before

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        (gradient,), parameters = gradients, ctx.parameters
        # For second derivatives, which compiled code does not have; without them it would only copy the gradient.
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            gradient = _Touch.apply(gradient, *parameters)  # type: ignore[no-untyped-call]
        return gradient, *(torch.zeros_like(parameter) for parameter in parameters)


class _Outputs:
    """The outputs of nodes, plain and with the gradient stopped as `protect` says."""

    def __init__(self, call: Pass) -> None:
        self._stops = call.suitable is not None
        self._plainly = call.protect == "sg"
        self._plain: dict[int, Tensor] = {}
        self._stopped: dict[int, Tensor] = {}
        self._last: tuple[tuple[int, ...], _Sources] | None = None

    def add(self, node: int, output: Tensor, carried: Tensor | None) -> None:
        """Adds the output of a node; `carried` is its shortcut."""
        self._plain[node] = output
        if self._stops:
            stop = self._plainly or carried is None
            self._stopped[node] = output.detach() if stop or carried is None else rsg(output, carried)

    def sources(self, parents: tuple[int, ...], reader: int) -> "_Sources | None":
        """Returns the rows of the nodes that a node may read; None if none of them has run."""
        if self._last is not None and self._last[0] == parents:
            return self._last[1]
        present = sorted(j for j in parents if j in self._plain)
        if not present:
            return None
        check_sources([self._plain[j][:0] for j in present], present, reader)
        stopped = [self._stopped[j] for j in present if self._stops]
        sources = _Sources(present, [self._plain[j] for j in present], stopped)
        self._last = parents, sources
        return sources


class _Sources:
    """The rows of several nodes in one matrix, followed by the same rows with their gradient stopped."""

    def __init__(self, nodes: list[int], plain: list[Tensor], stopped: list[Tensor]) -> None:
        self.nodes = nodes
        self.shape = plain[0].shape[1:]
        self.count = sum(map(len, plain))
        self.rows = torch.cat([output.reshape(len(output), self.shape.numel()) for output in (*plain, *stopped)])

    def positions(self, rows: Rows, members: Tensor) -> Tensor:
        """Returns the positions of rows of the whole graph in this matrix."""
        first, last = self.nodes[0], self.nodes[-1]
        if rows.first[last + 1] - rows.first[first] == self.count:
            return members - rows.first[first]
        starts = torch.tensor([rows.first[j] for j in self.nodes], device=members.device)
        sizes = torch.tensor([rows.counts[j] for j in self.nodes], device=members.device)
        within = torch.searchsorted(starts + sizes, members, right=True)
        return members - (starts - (sizes.cumsum(0) - sizes))[within]


def _entered(x: Tensor, rows: Rows, group: tuple[int, int]) -> list[Tensor]:
    """The inputs of a group of nodes that read the input of the graph."""
    nodes = range(*group)
    if all(rows.counts[node] in (0, len(x)) for node in nodes):
        return [x if rows.counts[node] else x[:0] for node in nodes]
    read = x.index_select(0, rows.samples_of(group))
    # Modules may overwrite their input, which views of split() forbid.
    return list(torch.unsafe_split_with_sizes(read, [rows.counts[node] for node in nodes]))


def _mixed(
    rows: Rows,
    group: tuple[int, int],
    sources: _Sources,
    edge_weights: Tensor,
    stops: Tensor | None,
    *,
    separate: bool,
) -> tuple[list[Tensor], list[Tensor]]:
    """The inputs of the modules of a group, and their shortcuts."""
    edges, offsets = rows.mixes.of(group)
    counts = [rows.counts[node] for node in range(*group)]
    members, weights = sources.positions(rows, rows.mixes.members[edges]), edge_weights[edges]

    def mix(read: Tensor) -> list[Tensor]:
        mixed = bag(sources.rows, weights, read, offsets)
        return list(torch.unsafe_split_with_sizes(mixed.reshape(len(mixed), *sources.shape), counts))

    if stops is None:
        plain = mix(members)
        return plain, plain
    protected = mix(members + stops[edges] * sources.count)
    return protected, mix(members) if separate else protected


def bag(values: Tensor, weights: Tensor, members: Tensor, offsets: Tensor) -> Tensor:
    """Computes weighted sums of rows, one for each offset, over the members up to the next offset."""
    result: Tensor = _Bag.apply(values, weights.to(values.dtype), members, offsets)  # type: ignore[no-untyped-call]
    return result


class _Bag(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, weights: Tensor, members: Tensor, offsets: Tensor) -> Tensor:
        ctx.save_for_backward(values, weights, members, offsets)
        if values.dtype not in _BAGGED:
            return _plain_bag(values, weights, members, _bag_of(offsets, len(members)), len(offsets))
        return F.embedding_bag(members, values, offsets, mode="sum", per_sample_weights=weights)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        values, weights, members, offsets = ctx.saved_tensors
        (gradient,) = gradients
        reader = _bag_of(offsets, len(members))
        grad_values = grad_weights = None
        if ctx.needs_input_grad[0]:
            grad_values = _plain_bag(gradient, weights, reader, members, len(values))
        if ctx.needs_input_grad[1] and (wants_more(gradient) or values.dtype not in _BAGGED):
            grad_weights = (gradient.index_select(0, reader) * values.index_select(0, members).conj()).sum(dim=-1)
        elif ctx.needs_input_grad[1]:
            grad_weights = torch.ops.aten._embedding_bag_per_sample_weights_backward(
                gradient.contiguous(), values, members, offsets, reader, 0
            )
        return grad_values, grad_weights, None, None


_BAGGED = (torch.float32, torch.float64, torch.bfloat16)
"""The types for which torch has a fast kernel of weighted bags."""


def _bag_of(offsets: Tensor, edges: int) -> Tensor:
    """The bag of each edge."""
    bounds = torch.cat([offsets, offsets.new_tensor([edges])])
    return torch.arange(len(offsets), device=offsets.device).repeat_interleave(bounds.diff())


def _plain_bag(values: Tensor, weights: Tensor, members: Tensor, bags: Tensor, count: int) -> Tensor:
    """Computes weighted sums of rows by operations that can be differentiated again."""
    read = values.index_select(0, members) * weights.unsqueeze(-1)
    return read.new_zeros(count, values.shape[-1]).index_add(0, bags, read)


def _run_one(call: Pass) -> Tensor | None:
    """Runs the route of one sample with weights as plain numbers; returns None if a node reads nothing."""
    topology, nodes, shortcuts = call.plan.topology, call.nodes, call.plan.shortcuts
    shares: list[list[float]] = call.weights.reshape(topology.path_shape).tolist()
    outputs: dict[int, Tensor] = {}
    needed = _needed(topology, call.read()[0])
    if needed is None:
        return None
    modules = lean_modules([nodes[node] for node, _, _ in needed])
    for (node, t, slots), module in zip(needed, modules, strict=True):
        if not topology.parents[node]:
            output = module(call.x)
            if not isinstance(output, Tensor):
                refuse_output(f"node {node}", output)
            outputs[node] = output
            continue
        first, *others = slots
        parents, share = topology.parents[node], shares[t]
        mixed = outputs[parents[first]] * share[first]
        for s in others:
            mixed = torch.add(mixed, outputs[parents[s]], alpha=share[s])
        output = module(mixed)
        if not isinstance(output, Tensor):
            refuse_output(f"node {node}", output)
        if shortcuts[node]:
            if output.shape != mixed.shape:
                check_shortcut(node, mixed, output)
            output = mixed + output
        outputs[node] = output
    return outputs[topology.num_nodes - 1]


def _run_few(call: Pass) -> Tensor | None:
    """Runs every node that any of a few samples needs for all of them, since calls cost more than sums here.

    It returns None if that is not possible: if a node reads nothing, if it reads outputs that differ in shape or type,
    or if an output is not finite, which would spoil the sums of samples that do not read it.
    """
    topology, nodes, shortcuts, batch = call.plan.topology, call.nodes, call.plan.shortcuts, call.batch
    last = topology.num_nodes - 1
    flat = call.flat()
    if flat.x.dim() != 2:
        return None
    needed = _needed(topology, call.read().any(dim=0))
    if needed is None:
        return None
    shares: dict[torch.dtype, tuple[Tensor, ...]] = {}  # of each destination, with shape [batch, 1, S]
    outputs: dict[tuple[torch.Size, torch.dtype], Tensor] = {}  # of nodes of one kind, with shape [nodes, batch, width]
    kinds: dict[int, tuple[torch.Size, torch.dtype]] = {}
    modules = lean_modules([nodes[node] for node, _, _ in needed])
    for (node, t, slots), module in zip(needed, modules, strict=True):
        parents = topology.parents[node]
        mixed: Tensor | None = None
        if parents:
            kind = kinds[parents[slots[0]]]
            if len(outputs) > 1 and any(kinds[parents[s]] != kind for s in slots):
                return None
            shape, dtype = kind
            if dtype not in shares:
                shares[dtype] = flat.weights.to(dtype).unsqueeze(2).unbind(1)
            # Nodes that did not run are zero and have no weight.
            first, stop = parents[0], parents[-1] + 1
            share, read = shares[dtype][t], outputs[kind]
            if (first, topology.path_shape[1]) != (0, last):
                share, read = share[..., : stop - first], read[first:stop]
            mixed = torch.bmm(share, read.transpose(0, 1)).squeeze(1)
            mixed = mixed if len(shape) == 1 else mixed.reshape(-1, *shape)
        if node == last and not all(each.sum().isfinite() for each in outputs.values()):
            return None
        output = module(flat.x if mixed is None else mixed)
        if not isinstance(output, Tensor):
            refuse_output(f"node {node}", output)
        if node == last:
            return call.unflat(output)
        carried = mixed if shortcuts[node] else None
        dtype = output.dtype if carried is None else torch.promote_types(output.dtype, carried.dtype)
        kind = kinds[node] = output.shape[1:], dtype
        if kind not in outputs:
            outputs[kind] = output.new_zeros(last, batch.numel(), kind[0].numel(), dtype=dtype)
        place = outputs[kind][node].view(output.shape)
        if carried is None:
            place.copy_(output)
        else:
            check_shortcut(node, carried, output)
            torch.add(output, carried, out=place)
    raise AssertionError("the last node is the output")


def _needed(topology: Topology, path: Tensor) -> list[tuple[int, int, list[int]]] | None:
    """Lists the nodes that a path of shape ``[T, S]`` uses, each with its row of the path and the slots it reads.

    It returns None if one of them reads nothing, for instance if the weight of a replayed source underflows.
    """
    chosen: list[list[bool]] = path.tolist()
    used: list[tuple[int, int, list[int]]] = []
    needed = {topology.num_nodes - 1}
    t = len(topology.destinations)
    for node in reversed(range(topology.num_nodes)):
        parents = topology.parents[node]
        t -= bool(parents)
        if node in needed:
            slots = [s for s, read in enumerate(chosen[t]) if read] if parents else []
            if parents and not slots:
                return None
            needed.update(parents[s] for s in slots)
            used.append((node, t, slots))
    return used[::-1]
