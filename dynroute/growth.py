r"""Changing the size of networks while they learn: adding nodes before the output, and dropping unused ones.

Growth leaves the evaluation unchanged and lets new nodes learn as follows:

1. Logits are linear in the router's slices of the edges. The slice of an edge from a new node to the output starts as
   the mean of the slices of the other edges to the output, with a bias lower by b, :data:`CLOSED`. Its logit is
   therefore :math:`\bar z - b`, the mean of the other logits minus b, for every context, and its probability among n
   old sources is at most :math:`e^{-b} / n`, by the inequality of the means. With b = 20 this is less than half a
   rounding error of float32, so neither gates nor protection notice it. A gate that reads k sources may choose a new
   source if an old one is as unlikely; its weight is then negligible too. The mean leaves out sources that the router
   closes, by a bias of -inf or one more than 2b below the best; a new node would be closed for good otherwise.
2. Sampling does not draw new nodes for the same reason. Noise on the choice would not help, since weights come from the
   clean logits: a node without weight learns nothing. :func:`open_nodes` raises the logits, at once or a little with
   each update. At a distance b a new source is drawn first with a probability of at most :math:`e^{-b} / n`. From b = 2
   on, :class:`~dynroute.SampleK` draws it within some hundred samples, while evaluation, which takes the k best, leaves
   it out until learning raises it above the k-th. With :class:`~dynroute.Soft` and :class:`~dynroute.Hard` evaluation
   changes with its probability.
3. A new node reads the same sources as the output with the same slices, so it starts by refining the mix of the output.
   It reads other new nodes like the average source.
4. In a :class:`~dynroute.BalancedTopK` a new source starts with the smallest bias of its neighbours, so it does not
   overtake any of them until its bias has moved.
5. In training, the threshold of Eq. 10 follows the number of sources and protects slightly less than before.
"""

from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, compress
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .arguments import check_count, check_modules, check_number, check_tensor, shown
from .banks import own_memory
from .gates import ExpertChoice
from .levels import ModelRouting, RoutedGraph
from .resetting import reset_all
from .routers import EdgeParameter, Router
from .statistics import Summary
from .topology import Topology

__all__ = ["CLOSED", "Resized", "find_graph", "grow", "has_slices", "open_nodes", "prune", "slice_edges"]

CLOSED = 20.0
"""The initial distance of the logit of a new node below the mean of the output's other sources."""

Origin = tuple[int, ...]
"""The old edges whose mean slice a new edge starts with."""


class _Change(NamedTuple):
    """A parameter with a slice for each edge, before and after a change of size."""

    before: nn.Parameter
    after: nn.Parameter
    dim: int
    origins: list[Origin]

    def carried(self, state: Tensor) -> Tensor:
        """Converts a tensor with the old shape, such as a moment of Adam, to the new shape."""
        return _slices(state, self.dim, self.origins)


@dataclass(frozen=True, eq=False)
class Resized:
    """The changes of :func:`grow` or :func:`prune`, needed to adapt optimizers and recorded paths.

    Example:
        >>> net = ModuleRouting.mlp(5, 8, 4, 2)
        >>> optimizer = torch.optim.Adam(net.parameters())
        >>> grown: dynroute.Resized = dynroute.grow(net, 1)
        >>> grown.carry(optimizer)
        >>> len(optimizer.param_groups[0]["params"]) == len(list(net.parameters()))
        True
    """

    before: Topology
    """The old graph."""

    after: Topology
    """The new graph."""

    added: tuple[int, ...] = ()
    """The added nodes, numbered as in the new graph."""

    dropped: tuple[int, ...] = ()
    """The dropped nodes, numbered as in the old graph."""

    _changes: list[_Change] = field(default_factory=list, repr=False)
    _old: list[list[nn.Parameter]] = field(default_factory=list, repr=False)
    _new: list[list[nn.Parameter]] = field(default_factory=list, repr=False)
    _old_names: dict[nn.Parameter, str] = field(default_factory=dict, repr=False)
    _new_names: dict[nn.Parameter, str] = field(default_factory=dict, repr=False)
    _takers: dict[torch.optim.Optimizer, int] = field(default_factory=dict, repr=False)
    """The optimizers that took the parameters of new modules, and how far from them was the nearest that each held."""

    @property
    def num_modules(self) -> int:
        """The new number of modules without the output; a network built with this number loads the state dict."""
        return self.after.num_nodes - 1

    def carry(self, optimizer: torch.optim.Optimizer) -> None:
        """Replaces the old parameters in an optimizer by the new ones and keeps its state.

        New slices of the router start with the mean state of the slices that they were made from. Parameters of new
        modules start without state, behind those of the module before them, as in a new optimizer. State with another
        shape than its parameter is dropped. Parameter names are updated.

        Among several optimizers, in any order, the one that holds the nearest module before the new ones takes their
        parameters, else the one of the output, else that of the router. Carry all of them before the next step.

        Args:
            optimizer: An optimizer of some or all parameters of the net; its other parameters are not changed.
                ``torch.optim.LBFGS`` is refused, since its state is one vector for all parameters.
        """
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(f"`optimizer` must be an optimizer of torch, got {shown(optimizer)}.")
        if isinstance(optimizer, torch.optim.LBFGS):
            raise TypeError(
                "`optimizer` must have a state for each parameter, got an LBFGS, whose state is one vector for all; "
                "make a new one."
            )
        if self.before == self.after:
            return
        held = {parameter for group in optimizer.param_groups for parameter in group["params"]}
        changes = {change.before: change for change in self._changes}
        if not held & {*changes, *chain.from_iterable(self._old)}:
            raise ValueError(
                "`optimizer` must hold parameters that the net had before it changed its size, got one without any; "
                "was it made afterwards, or carried already?"
            )
        names = _names(optimizer)
        prefix = _prefix(names, self._old_names)
        names |= {change.after: names[before] for before, change in changes.items() if before in names}

        kept = set(chain.from_iterable(self._new))
        gone = [parameter for node in self.dropped for parameter in self._old[node] if parameter not in kept]
        successors: dict[nn.Parameter, list[nn.Parameter]] = {parameter: [] for parameter in gone}
        successors |= {before: [change.after] for before, change in changes.items()}
        before_growth = {*chain.from_iterable(self._old)}
        added = [p for node in self.added for p in self._new[node] if p not in before_growth]
        fresh = [parameter for parameter in added if parameter not in held]
        earlier = [*chain.from_iterable(self._new[: self.added[0]])][::-1] if added else []
        near = [*added, *earlier, *self._new[-1], *changes] if added else []
        distance = next((i for i, parameter in enumerate(near) if parameter in held), len(near))
        if added and distance <= min(self._takers.values(), default=distance):
            for taker in [taker for taker, other in self._takers.items() if other > distance]:
                _remove(taker, set(added))
                del self._takers[taker]
            self._takers[optimizer] = distance
            if distance == len(near):
                optimizer.param_groups[0]["params"].extend(fresh)
            elif distance < len(added) + len(earlier):
                successors[near[distance]] = [near[distance], *fresh]
            else:
                successors[near[distance]] = [*fresh, *successors.get(near[distance], [near[distance]])]
        for group in optimizer.param_groups:
            group["params"] = [new for old in group["params"] for new in successors.get(old, [old])]
        for parameter in (*gone, *changes):
            state = optimizer.state.pop(parameter, {})
            if parameter in changes and (carried := _carried(state, changes[parameter])):
                optimizer.state[changes[parameter].after] = carried
        if names:
            new = names if prefix is None else {parameter: prefix + name for parameter, name in self._new_names.items()}
            for group in optimizer.param_groups:
                group["param_names"] = [new.get(p) or names.get(p) or self._new_names[p] for p in group["params"]]


def grow(net: nn.Module, modules: Iterable[nn.Module] | int) -> Resized:
    r"""Adds nodes before the output of a net, in place, without changing its evaluation.

    At module level each new node may read all earlier ones, and the output may read the new nodes. At model level new
    networks stand beside the others. Evaluation stays the same to 1e-6 for every gate that decides each sample
    independently, so :class:`~dynroute.ExpertChoice` is refused. The docstring of :mod:`dynroute.growth` gives the
    reasons, and says how :func:`open_nodes` lets the new nodes learn. The state dict of the net fits a network built
    with the new size, see :attr:`Resized.num_modules`. The router grows with the graph, so another graph
    that shares it can no longer use it.

    Args:
        net: A graph at module or model level, or a network that contains one, such as
            :class:`~dynroute.networks.DynamicDepthRouting`. Its router must have
            :meth:`~dynroute.Router.edge_parameters`.
        modules: The new modules, or the number of newly initialized copies of the last module before the output. The
            networks of :mod:`dynroute.networks` initialize them as their own, by their method `reset_module`; modules
            of other nets are initialized by their `reset_parameters`.

    Returns:
        The changes. Apply :meth:`~Resized.carry` to optimizers and :meth:`Topology.lift <dynroute.Topology.lift>` to
        recorded paths.

    Example:
        >>> net = ModuleRouting.mlp(5, 8, 4, 2).eval()
        >>> x = torch.randn(16, 5)
        >>> before, route = net(x, return_route=True)
        >>> grown = dynroute.grow(net, [nn.Sequential(nn.Linear(8, 8), nn.ReLU())])
        >>> torch.allclose(net(x), before, atol=1e-6)
        True
        >>> path = grown.before.lift(route.path, to=grown.after)
        >>> torch.allclose(net(x, path=path), before, atol=1e-6), grown.num_modules
        (True, 5)
    """
    graph = _find_independent(net)
    before = graph.topology
    at_model_level = before == Topology.parallel(before.num_nodes - 1)
    if before.num_nodes == 2:  # the topologies of both levels are equal
        at_model_level = isinstance(graph, ModelRouting)
    if before != Topology.dag(before.num_nodes) and not at_model_level:
        raise ValueError(
            f"`net` must route at module or model level to grow, got {before}, neither Topology.dag nor "
            "Topology.parallel; a layer that grows would change what the next one reads."
        )
    if isinstance(modules, int):
        owners = [part for part in net.modules() if hasattr(part, "reset_module") and graph in part.modules()]
        reset: Any = owners[-1].reset_module if owners else partial(reset_all, "net.nodes[-2]")
        new = _fresh(graph, modules, at_model_level, reset)
    else:
        new = check_modules("modules", modules)
    if not new:
        raise ValueError("`modules` must hold at least one module, got none.")
    existing = set(graph.modules())
    kinds = {(one.dtype, one.device) for one in graph.nodes.parameters() if one.is_floating_point()}
    for i, module in enumerate(new):
        if module in existing or module in new[:i]:
            raise ValueError(f"`modules[{i}]` must be a new module, got one that the net has; copy.deepcopy copies it.")
        if any(values.is_inference() for values in chain(module.parameters(), module.buffers())):
            raise ValueError(
                f"`modules[{i}]` must be made outside of torch.inference_mode(), since parameters that are made inside "
                "cannot learn; make it before, or give the number of modules."
            )
        found = {(one.dtype, one.device) for one in module.parameters() if one.is_floating_point()}
        if found and kinds and not found & kinds:  # parts of another type, such as norms, are for the module to fit
            expected, got = (
                " or ".join(sorted(f"{dtype} on {device}" for dtype, device in each)) for each in (kinds, found)
            )
            raise TypeError(
                f"`modules[{i}]` must have parameters of {expected} like the net, got {got}; `module.to(...)` converts "
                "it."
            )
    for module in new:
        module.train(graph.training)

    last, count = before.num_nodes - 1, before.num_nodes + len(new)
    after = Topology.parallel(count - 1) if at_model_level else Topology.dag(count)
    old_numbers: list[int | None] = [*range(last), *[None] * len(new), last]
    numbers, output = before.edge_numbers(), before.parents[-1]
    origins: list[Origin] = []
    closed = []
    for source, node in after.edge_numbers():
        old, reader = old_numbers[source], old_numbers[node]
        reader = last if reader is None else reader  # a new node reads like the output
        origins.append(tuple(numbers[j, reader] for j in (output if old is None else (old,))))
        closed.append(-CLOSED if node == count - 1 and old is None else 0.0)
    nodes = [*graph.nodes[:-1], *new, graph.nodes[-1]]
    names = [f"net.nodes[{node}]" for node in range(last)] + [f"modules[{i}]" for i in range(len(new))]
    graph._check_modules(nodes, after, [*names, f"net.nodes[{last}]"])
    return _resize(graph, nodes, after, origins, closed, added=tuple(range(last, count - 1)))


def prune(net: nn.Module, usage: Tensor | Summary, *, at_most: float = 0.0) -> Resized:
    """Drops the nodes that no task uses, in place; the inverse of :func:`grow`.

    With :class:`~dynroute.TopK` and :class:`~dynroute.SampleK` the evaluation of samples that used no dropped node does
    not change. With :class:`~dynroute.Hard` the choice does not change, but the weight is slightly larger, since it is
    the probability among fewer sources. With :class:`~dynroute.BalancedTopK` and :class:`~dynroute.TopP` the choice may
    change too, since they choose by probabilities, which are larger among fewer sources. :class:`~dynroute.Soft` uses
    every node. For an exact copy for inference see :func:`dynroute.extract`.

    Args:
        net: A routed graph, or a network that contains one, with any topology and any gate except
            :class:`~dynroute.ExpertChoice`.
        usage: The share of samples for which each task uses each node, with shape ``[N, num_nodes]``: `used` of a
            :class:`~dynroute.inspect.Summary` of evaluation, or that summary.
        at_most: A node counts as unused if no task uses it for a larger share of its samples.

    Returns:
        The changes; apply :meth:`~Resized.carry` to optimizers. Recorded paths that use a dropped node become invalid.

    Example:
        >>> net = ModuleRouting.mlp(5, 8, 6, 2, gate=TopK(2)).eval()
        >>> x = torch.randn(16, 5)
        >>> before, route = net(x, return_route=True)
        >>> pruned = dynroute.prune(net, dynroute.inspect.summarize(net.topology, route))
        >>> torch.allclose(net(x), before, atol=1e-6), len(net.nodes) == 7 - len(pruned.dropped)
        (True, True)
    """
    graph = _find_independent(net)
    before = graph.topology
    used = usage.used if isinstance(usage, Summary) else usage
    check_tensor("usage", used)
    if used.dim() == 0 or used.shape[-1] != before.num_nodes:
        raise ValueError(
            f"`usage` must have shape (*, {before.num_nodes}), a column for each node, got {tuple(used.shape)}; "
            "`inspect.summarize(...).used` has it."
        )
    if bool(used.isnan().any()):
        raise ValueError("`usage` must not be NaN: a task without samples does not tell what it uses; give it some.")
    check_number("at_most", at_most, at_least=0, below=1)

    runs = (used.detach().float() > at_most).reshape(-1, before.num_nodes).any(dim=0).tolist()
    kept = [node for node in range(before.num_nodes) if runs[node] or node == before.num_nodes - 1]
    if len(kept) == before.num_nodes:
        return Resized(before, before)
    number = {node: place for place, node in enumerate(kept)}
    parents = [[number[j] for j in before.parents[node] if j in number] for node in kept]
    for node, row in zip(kept, parents, strict=True):
        if before.parents[node] and not row:
            raise ValueError(
                f"`usage` must come from routes of this net: it uses node {node} and none of its sources "
                f"{list(before.parents[node])}."
            )
    after, numbers = Topology(parents), before.edge_numbers()
    origins: list[Origin] = [(numbers[kept[source], kept[node]],) for source, node in after.edge_numbers()]
    dropped = tuple(node for node in range(before.num_nodes) if node not in number)
    nodes = list(graph.nodes)
    return _resize(graph, [nodes[i] for i in kept], after, origins, [0.0] * len(origins), dropped=dropped)


def open_nodes(net: nn.Module, nodes: Sequence[int], by: float) -> None:
    """Raises the logits with which the output reads some nodes, in place and for all contexts.

    After :func:`grow` the logits of new nodes are lower by :data:`~dynroute.growth.CLOSED`. Raised by this amount, new
    nodes score like the average source. Raise them by a fraction at each update for a smooth start.

    Args:
        net: A routed graph, or a network that contains one.
        nodes: The nodes, for instance :attr:`Resized.added`.
        by: The number to add to the logits.

    Example:
        >>> net = ModuleRouting.mlp(5, 8, 4, 2).eval()
        >>> grown, x = dynroute.grow(net, 1), torch.randn(512, 5)
        >>> bool(net.route(x, sample=True).path[:, -1, 4].any())  # the output reads node 4 for no sample
        False
        >>> dynroute.open_nodes(net, grown.added, by=18.0)
        >>> bool(net.route(x, sample=True).path[:, -1, 4].any())
        True
    """
    graph = find_graph("net", net)
    topology = graph.topology
    check_number("by", by)
    if not isinstance(nodes, Sequence) or isinstance(nodes, (str, bytes)):
        raise TypeError(f"`nodes` must list nodes, got {shown(nodes)}; for instance those that `grow` added.")
    for i, node in enumerate(nodes):
        check_count(f"nodes[{i}]", node, at_least=0)
        if node not in topology.parents[-1]:
            raise ValueError(f"`nodes[{i}]` must be a source of the output, one of {list(topology.parents[-1])}.")
        if node in nodes[:i]:
            raise ValueError(f"`nodes[{i}]` must differ from the nodes before it, got {node} again; list it once.")
    numbers = topology.edge_numbers()
    edges = [numbers[node, topology.num_nodes - 1] for node in nodes]
    with torch.no_grad():
        for owner, name, dim, shifts in _router(graph).edge_parameters():
            if shifts and edges:
                parameter = getattr(owner, name)
                parameter.index_add_(dim, *_shift(parameter, dim, edges, by))


def find_graph(name: str, net: nn.Module) -> RoutedGraph:
    """Finds the routed graph that a net is or contains; raises an error unless there is exactly one.

    Example:
        >>> dynroute.growth.find_graph("net", nn.Sequential(nn.Linear(3, 5), ModuleRouting.mlp(5, 8, 4, 2))).topology
        Topology(num_nodes=5, num_edges=10, path_shape=(4, 4))
    """
    if not isinstance(net, nn.Module):
        raise TypeError(f"`{name}` must be a routed graph or a network that contains one, got {shown(net)}.")
    if isinstance(net, RoutedGraph):
        return net
    graphs = {label: part for label, part in net.named_modules() if isinstance(part, RoutedGraph)}
    if len(graphs) != 1:
        number = f"{len(graphs)}: {', '.join(graphs)}; pass one of them" if graphs else "none"
        raise ValueError(f"`{name}` must contain one routed graph, a {type(net).__name__} has {number}.")
    return next(iter(graphs.values()))


def has_slices(router: Router) -> bool:
    """Whether a router has parameters with a slice for each edge, none of them parametrized.

    Example:
        >>> dynroute.growth.has_slices(LinearRouter(5, Topology.dag(3))), dynroute.growth.has_slices(TaskRouter(3))
        (True, False)
    """
    parameters = _edge_parameters(router)
    return bool(parameters) and all(place.name in place.owner._parameters for place in parameters)


def slice_edges(router: Router, edges: Sequence[int]) -> None:
    """Keeps only the slices of some edges of a router, in place; set its topology as well.

    Example:
        >>> router = LinearRouter(5, Topology.dag(3))
        >>> dynroute.growth.slice_edges(router, [0, 2])
        >>> router.layers[0].bias.shape
        torch.Size([2])
    """
    for place in router.edge_parameters():
        _set(place, _slices(getattr(place.owner, place.name), place.dim, [(edge,) for edge in edges]))


def _edge_parameters(router: nn.Module) -> list[EdgeParameter]:
    """The edge parameters of a router; none if a subclass of the class that lists them computes other logits."""
    if not isinstance(router, Router) or {"score", "forward"} & vars(router).keys():
        return []
    first = {name: i for i, owner in reversed([*enumerate(type(router).__mro__)]) for name in vars(owner)}
    is_known = first["edge_parameters"] <= min(first["score"], first["forward"])
    return router.edge_parameters() if is_known else []


def _set(place: EdgeParameter, values: Tensor) -> nn.Parameter:
    """Replaces a parameter by one with other values."""
    owner, name, dim, _ = place
    parameter = nn.Parameter(values, requires_grad=getattr(owner, name).requires_grad)
    setattr(owner, name, parameter)
    if isinstance(owner, nn.Linear):
        owner.out_features = values.shape[dim]
    return parameter


@torch.inference_mode(False)  # training uses what this makes
@torch.no_grad()
def _resize(
    graph: RoutedGraph,
    modules: Sequence[nn.Module],
    after: Topology,
    origins: list[Origin],
    shifts: list[float],
    *,
    added: tuple[int, ...] = (),
    dropped: tuple[int, ...] = (),
) -> Resized:
    """Replaces the nodes of a graph, and the slices of its router."""
    if "_execute" in vars(graph):
        raise ValueError(
            "`net` must have all its modules on this process to change its size, but some live on others; gather them "
            "with `dynroute.distributed.gather_state_dict` first."
        )
    router, before = _router(graph), graph.topology
    old_names = {parameter: name for name, parameter in graph.named_parameters()}
    old = [list(module.parameters()) for module in graph.nodes]
    bank = graph.has_bank
    moved = [edge for edge, shift in enumerate(shifts) if shift]

    changes = []
    averaged = _without_closed(router, origins)
    for place in router.edge_parameters():
        owner, name, dim, takes_shift = place
        parameter = getattr(owner, name)
        values = _slices(parameter, dim, averaged, only_open=takes_shift)
        if takes_shift and moved:
            values.index_add_(dim, *_shift(values, dim, moved, shifts[moved[0]]))
        changes.append(_Change(parameter, _set(place, values), dim, averaged))
    router.topology = after

    def slots(values: Tensor) -> Tensor:
        edges = before.to_edges(values)
        return after.from_edges(torch.stack([edges[list(origin)].amin() for origin in origins]), fill=0.0)

    graph.gate.resize(slots)
    graph.arrange(modules, after, adjacent=bank)
    new = [list(module.parameters()) for module in modules]
    new_names = {parameter: name for name, parameter in graph.named_parameters()}
    return Resized(before, after, added, dropped, changes, old, new, old_names, new_names)


def _find_independent(net: nn.Module) -> RoutedGraph:
    """Finds the routed graph of a net; raises an error unless its gate decides each sample on its own."""
    graph = find_graph("net", net)
    if isinstance(graph.gate, ExpertChoice):
        raise ValueError(
            "`net` must have a gate that decides each sample on its own, got ExpertChoice: how many samples a source "
            "takes depends on how many sources there are."
        )
    return graph


def _router(graph: RoutedGraph) -> Router:
    """Returns the router of a graph; raises an error unless it can change its size."""
    router = graph.router
    parameters = _edge_parameters(router)
    name = type(router).__name__
    if not any(place.shifts for place in parameters):
        raise ValueError(
            f"`net` must have a router whose edges can be added and dropped, got a {name}; an MLPRouter, a "
            "LinearRouter or a TableRouter can, or your own router that overrides `edge_parameters` beside `score` or "
            "`forward`, by `return super().edge_parameters()` if its logits are linear in them."
        )
    for place in parameters:
        if place.name not in place.owner._parameters:
            raise ValueError(
                f"`net` must have a router with plain parameters, `{place.name}` of its {name} is computed from "
                "others; remove the parametrization first."
            )
    assert isinstance(router, Router)
    return router


def _fresh(graph: RoutedGraph, count: int, at_model_level: bool, reset: Callable[[nn.Module], None]) -> list[nn.Module]:
    """Makes newly initialized copies of the last module before the output."""
    check_count("modules", count, at_least=1)
    if len(graph.nodes) == 2 and not at_model_level:
        raise ValueError(
            "`modules` must list modules where the net has one alone, which reads the input: there is none to take as "
            f"a pattern, got {count}."
        )
    modules, with_gradients = [], torch.is_grad_enabled()  # a module may need them to initialize itself
    with torch.inference_mode(False), torch.set_grad_enabled(with_gradients):  # training uses what this makes
        for _ in range(count):
            module = deepcopy(graph.nodes[-2])
            own_memory(module)
            for parameter in module.parameters():
                parameter.requires_grad_(parameter.is_floating_point())
            reset(module)
            modules.append(module)
    return modules


def _slices(tensor: Tensor, dim: int, origins: Sequence[Origin], *, only_open: bool = False) -> Tensor:
    """Stacks the mean slice of each origin along a dimension, of all its numbers or of those that close no edge."""
    rows = tensor.detach().movedim(dim, 0)
    means = rows[[origin[0] for origin in origins]]
    for edge, origin in enumerate(origins):
        if len(origin) > 1:
            values = rows[list(origin)]
            means[edge] = values.mean(dim=0)
            if only_open and not (opens := _opens(values)).all():  # a table may close a source for one task alone
                mean = values.masked_fill(~opens, torch.nan).nanmean(dim=0)
                means[edge] = torch.where(opens.any(dim=0), mean, means[edge])
    return means.movedim(0, dim).contiguous()


def _opens(shifts: Tensor) -> Tensor:
    """Which of the numbers that are added to logits, with one row for each edge, do not close their edge."""
    finite = shifts.isfinite()
    best = shifts.masked_fill(~finite, -torch.inf).amax(dim=0)
    return finite & (shifts >= best - 2 * CLOSED)


def _without_closed(router: Router, origins: Sequence[Origin]) -> list[Origin]:
    """Leaves out the edges that a router closes for every context; keeps an origin whose edges are all closed."""
    places = [place for place in router.edge_parameters() if place.shifts]
    shifts = [getattr(place.owner, place.name).detach().movedim(place.dim, 0) for place in places]
    left: dict[Origin, Origin] = {}
    for origin in set(origins):
        opens = [_opens(rows[list(origin)]).reshape(len(origin), -1).any(dim=1).tolist() for rows in shifts]
        left[origin] = tuple(compress(origin, map(all, zip(*opens, strict=True)))) or origin
    return [left[origin] for origin in origins]


def _shift(tensor: Tensor, dim: int, edges: Sequence[int], by: float) -> tuple[Tensor, Tensor]:
    """The arguments of `index_add_` that add a number to the slices of some edges."""
    shape = [*tensor.shape]
    shape[dim] = len(edges)
    return torch.tensor(edges, device=tensor.device), tensor.new_full(shape, by)


@torch.inference_mode(False)  # training uses what this makes
@torch.no_grad()
def _carried(state: dict[str, Any], change: _Change) -> dict[str, Any]:
    """The state of a parameter after its change; empty if some of it has another shape than the parameter."""
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor) and value.dim()}
    if any(value.shape != change.before.shape for value in tensors.values()):
        return {}
    return state | {name: change.carried(value) for name, value in tensors.items()}


def _names(optimizer: torch.optim.Optimizer) -> dict[nn.Parameter, str]:
    """The names of an optimizer's parameters; empty if it was made without them."""
    named = [group for group in optimizer.param_groups if "param_names" in group]
    return dict(pair for group in named for pair in zip(group["params"], group["param_names"], strict=True))


def _remove(optimizer: torch.optim.Optimizer, parameters: set[nn.Parameter]) -> None:
    """Removes parameters from an optimizer, with their names and their state."""
    for group in optimizer.param_groups:
        stays = [parameter not in parameters for parameter in group["params"]]
        for entry in {"params", "param_names"} & group.keys():
            group[entry] = [*compress(group[entry], stays)]
    for parameter in parameters:
        optimizer.state.pop(parameter, None)


def _prefix(names: dict[nn.Parameter, str], graph_names: dict[nn.Parameter, str]) -> str | None:
    """The prefix that an optimizer's names have before the names in a graph; None if they do not end with those."""
    for parameter, name in names.items():
        if parameter in graph_names and f".{name}".endswith(f".{graph_names[parameter]}"):
            return name.removesuffix(graph_names[parameter])
    return None
