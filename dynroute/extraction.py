"""The part of a routed network that some contexts use, as plain modules, small and exportable.

1. Where all contexts are one, as for one task and a router that looks at the task alone, weights are constants: there
   is no router and no gate left.
2. Where contexts differ and take one path, the router stays with the edges of that path, whose weights it computes.
3. Where they take several paths, the router and the gate choose among the edges that some context takes. The k best of
   these are the k best of all, wherever those are among them.

In 2. and 3. the router loses the rows of other edges with :class:`~dynroute.Soft`, :class:`~dynroute.TopK` and
:class:`~dynroute.SampleK` and a router that has :meth:`~dynroute.Router.edge_parameters`. Other gates may look at every
logit, as :class:`~dynroute.Hard` does for its probability; there router and gate stay whole, and only modules go.
"""

import copy
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from .arguments import check_count, check_tensor, shown
from .functional import mask_softmax
from .gates import ExpertChoice, Gate, SampleK, Soft, TopK
from .growth import find_graph, has_slices, slice_edges
from .levels import ModelRouting, RoutedGraph
from .networks import Network
from .route import Route
from .routers import Router
from .topology import Topology

__all__ = ["Extracted", "Extraction", "TaskNetwork", "extract"]


class Extraction(NamedTuple):
    """The report of :func:`extract`: the nodes that it kept, and how far that is from the whole.

    Example:
        >>> net = ModelRouting.mlp(5, 8, 4, 2, gate=TopK(2))
        >>> report: dynroute.Extraction = dynroute.extract(net, torch.randn(5)).report
        >>> len(report.nodes), report.coverage
        (3, 1.0)
    """

    nodes: tuple[int, ...]
    """The nodes that were kept, by their numbers in the whole graph."""

    coverage: float
    """The share of the contexts whose routes were kept whole."""

    deviation: float | None
    """The largest difference of an output from the whole net's, over all contexts given; None without inputs for it."""

    parameters: int
    """How many numbers are left."""

    parameters_before: int
    """How many there were."""

    reads: str
    """The part of routing that is left, "nothing", "weights" of one path, or "routes"."""


class Extracted(nn.Module):
    """A routed graph without what some contexts do not use; :func:`extract` makes it.

    Example:
        >>> net = ModuleRouting.mlp(5, 8, 6, 2, context_features=3, gate=TopK(2))
        >>> small: dynroute.Extracted = dynroute.extract(net, torch.tensor([1.0, 0.0, 0.0]))
        >>> small(torch.randn(7, 5)).shape, small.report.reads
        (torch.Size([7, 2]), 'nothing')
    """

    def __init__(self, body: nn.Module, report: Extraction, shared: Iterable[nn.Module] = ()) -> None:
        super().__init__()
        self.body = body
        self.shared = nn.ModuleList(shared)
        self.report = report
        """The nodes that were kept, and how far that is from the whole."""
        self.train(False)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Computes the output.

        Args:
            x: The input, with shape ``[*, ...]``.
            context: What the router looks at, `x` itself if None; not read where nothing of the router is left.
        """
        routed = isinstance(self.body, RoutedGraph)
        output: Tensor = self.body(x, context, sample=False) if routed else self.body(x)
        for module in self.shared:  # these run for every sample
            output = output + module(x)
        return output

    def train(self, mode: bool = True) -> Self:
        """Stays in evaluation mode, in which it was extracted."""
        return super().train(False)

    def extra_repr(self) -> str:
        return f"nodes={list(self.report.nodes)}, reads={self.report.reads!r}"


class TaskNetwork(nn.Module):
    """A network for one of its tasks, from the state to the output; :func:`extract` makes it.

    Example:
        >>> net = build("d2r", 39, 10, 8, num_modules=6)
        >>> policy: dynroute.TaskNetwork = dynroute.extract(net, torch.randn(64, 39), task=3)
        >>> policy(torch.randn(7, 39)).shape
        torch.Size([7, 8])
    """

    task: Tensor

    def __init__(self, network: Network, task: Tensor, report: Extraction) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("task", task)
        self.report = report
        """The nodes that were kept, and how far that is from the whole."""
        self.train(False)

    def forward(self, state: Tensor) -> Tensor:
        """Computes the output for states with shape ``[*, state_features]``."""
        task = self.task.to(state.dtype).expand(*state.shape[:-1], len(self.task))
        output, _ = self.network.compute(state, task)
        return output

    def train(self, mode: bool = True) -> Self:
        """Stays in evaluation mode, in which it was extracted."""
        return super().train(False)


def extract(
    net: nn.Module,
    context: Tensor,
    coverage: float = 1.0,
    *,
    task: int | None = None,
    x: Tensor | None = None,
) -> Extracted | TaskNetwork:
    """Makes a plain module with only what the routes of some contexts use in evaluation.

    With a coverage of 1 it computes what the net does for each of these contexts, up to rounding, and for others whose
    routes use the same edges. With less, the least used nodes go as long as the routes of so large a share of the
    contexts stay whole; :attr:`Extraction.deviation` tells what that costs the others. The net stays as it is, and
    shares no memory with what is made of it.

    Args:
        net: A routed graph, or one of the networks of :mod:`dynroute.networks`.
        context: For a graph, contexts such as it will see, with shape ``[*, context_features]``, or one of them. For a
            network, states, with shape ``[*, state_features]``.
        coverage: The share of the contexts whose routes are kept whole.
        task: For a network, the id of the task; the result then takes states alone.
        x: For a graph, inputs that go with the contexts, to measure the deviation; the contexts themselves if None,
            where they are inputs.

    Returns:
        For a graph an :class:`Extracted`, called as ``small(x, context)``; for a network a :class:`TaskNetwork`, called
        as ``small(state)``. The `report` of both tells what was kept.

    Example:
        >>> net = ModuleRouting.mlp(5, 8, 12, 2, gate=TopK(2)).eval()
        >>> x = torch.randn(64, 5)
        >>> small = dynroute.extract(net, x)
        >>> torch.allclose(small(x), net(x), atol=1e-6), small.report.parameters < small.report.parameters_before
        (True, True)
        >>> smaller = dynroute.extract(net, x, coverage=0.9)
        >>> smaller.report.coverage >= 0.9, len(smaller.report.nodes) <= len(small.report.nodes)
        (True, True)
    """
    graph = find_graph("net", net)
    if isinstance(graph.gate, ExpertChoice):
        raise ValueError(
            "`net` must have a gate that decides each sample on its own, got ExpertChoice: what a sample uses depends "
            "on the others of its batch."
        )
    check_tensor("context", context)
    if isinstance(coverage, bool) or not isinstance(coverage, (int, float)) or not 0 < coverage <= 1:
        raise ValueError(f"`coverage` must be a share above 0 and at most 1, got {shown(coverage)}.")
    if graph is net:
        if task is not None:
            raise ValueError(f"`task` must be None for a routed graph, whose context tells it, got {shown(task)}.")
        return _of_graph(graph, context, float(coverage), x)
    if not isinstance(net, Network):
        raise TypeError(
            f"`net` must be a routed graph or a network of dynroute.networks, got a {type(net).__name__}; pass the "
            "graph that it contains, with contexts as the graph gets them."
        )
    if x is not None:
        raise ValueError("`x` must be None for a network, whose states are both input and context.")
    if task is None:
        raise ValueError(f"`task` must be the id of one of the {net.num_tasks} tasks, got None.")
    check_count("task", task, at_least=0)
    if task >= net.num_tasks:
        raise ValueError(f"`task` must be less than {net.num_tasks}, the number of tasks, got {task}.")
    return _of_network(net, context, float(coverage), task)


def _of_network(net: Network, state: Tensor, coverage: float, task: int) -> TaskNetwork:
    net = copy.deepcopy(net).train(False)
    graph = find_graph("net", net)
    seen: list[tuple[Tensor, Tensor]] = []

    def look(_: nn.Module, inputs: tuple[Any, ...], __: dict[str, Any]) -> None:
        x, context = inputs
        seen.append((x, x if context is None else context))

    ids = torch.full(state.shape[:-1], task, device=state.device)
    handle = graph.register_forward_pre_hook(look, with_kwargs=True)
    with torch.no_grad():
        expected = net(state, ids)
    handle.remove()
    before = _count(net)
    (x, context), one_hot = seen[0], torch.zeros(net.num_tasks, device=state.device)
    one_hot[task] = 1
    body = _of_graph(graph, context, coverage, x)

    name = next(name for name, part in net.named_children() if part is graph)
    setattr(net, name, _InPlace(body))
    embedding = net._modules.get("task")
    if type(embedding) is nn.Linear and embedding.in_features == net.num_tasks:
        with torch.no_grad():
            net.task = _Constant(embedding(one_hot.to(embedding.weight.dtype)))
    made = TaskNetwork(net, one_hot, body.report)
    with torch.no_grad():
        deviation = _difference(made(state), expected)
    made.report = body.report._replace(deviation=deviation, parameters=_count(made), parameters_before=before)
    return made


def _of_graph(graph: RoutedGraph, context: Tensor, coverage: float, x: Tensor | None) -> Extracted:
    whole = copy.deepcopy(graph).train(False)
    topology = whole.topology
    with torch.no_grad():
        route = whole.route(context, sample=False)
        paths = route.path.reshape(-1, *topology.path_shape)
        if not len(paths):
            raise ValueError(f"`context` must hold at least one context, got shape {tuple(context.shape)}.")
        inputs = context if x is None else x
        expected = _outputs(whole, inputs, context, needed=x is not None or coverage < 1)
        used = topology.used(paths)
        covered = _covered(used, coverage)
        nodes = used[covered].any(dim=0).nonzero().flatten().tolist()
        live = (paths & used[:, list(topology.destinations), None])[covered]
        edges = topology.to_edges(live.any(dim=0)).nonzero().flatten().tolist()

        if _is_one(context.reshape(len(paths), -1)):
            weights = topology.to_edges(route.weights.reshape(-1, *topology.path_shape)[0])
            body: nn.Module = _Fixed(whole, nodes, edges, weights)
            reads = "nothing"
        else:
            one_path = bool((live == live[0]).all())
            body = _routed(whole, nodes, edges, one_path=one_path)
            reads = "weights" if one_path else "routes"
        shared: Iterable[nn.Module] = whole.shared if isinstance(whole, ModelRouting) else []
        report = Extraction(tuple(nodes), float(covered.float().mean()), None, 0, _count(graph), reads)
        made = Extracted(_own_memory(body), report, shared)
        made.report = report._replace(parameters=_count(made))
        if expected is not None:
            made.report = made.report._replace(deviation=_difference(made(inputs, context), expected))
    return made


def _covered(used: Tensor, coverage: float) -> Tensor:
    """The samples whose nodes are all kept when the least used ones go, as long as enough samples are left."""
    covered = used.new_ones(len(used))
    enough = coverage * len(used) - 1e-6
    for node in used.sum(dim=0).argsort(stable=True).tolist():
        left = covered & ~used[:, node]
        if int(left.sum()) >= enough:
            covered = left
    return covered


def _is_one(contexts: Tensor) -> bool:
    """Whether contexts are equal, but for the rounding of a product over a batch."""
    if not contexts.is_floating_point():
        return bool((contexts == contexts[0]).all())
    spread = (contexts - contexts[0]).abs().amax() if contexts.numel() else contexts.new_zeros(())
    return bool(spread <= 8 * torch.finfo(contexts.dtype).eps * contexts[0].abs().amax())


def _outputs(graph: RoutedGraph, x: Tensor, context: Tensor, *, needed: bool) -> Tensor | None:
    """The outputs of the whole graph; None where contexts are no inputs and none were given."""
    try:
        output = RoutedGraph.forward(graph, x, context, sample=False)
    except (ValueError, TypeError, RuntimeError, IndexError) as error:
        if not needed:
            return None
        raise ValueError(
            "`x` must hold inputs that go with the contexts, to measure what is lost where `coverage` is less than 1, "
            f"got {shown(x)}: {error}"
        ) from error
    assert isinstance(output, Tensor)
    return output


def _routed(whole: RoutedGraph, nodes: Sequence[int], edges: Sequence[int], *, one_path: bool) -> RoutedGraph:
    """A graph of some nodes and edges, with what it needs of router and gate."""
    number = {node: place for place, node in enumerate(nodes)}
    every = list(whole.topology.edge_numbers())
    parents: list[list[int]] = [[] for _ in nodes]
    for edge in edges:
        source, node = every[edge]
        parents[number[node]].append(number[source])
    small, router = Topology(parents), whole.router
    if type(whole.gate) in (Soft, TopK, SampleK) and isinstance(router, Router) and has_slices(router):
        router.topology = small
        slice_edges(router, edges)
        gate: Gate = Soft() if one_path else whole.gate
    else:
        router, gate = _Decided(whole, small, edges), _AsDecided()
    return RoutedGraph(
        [whole.nodes[node] for node in nodes], small, gate, router, shortcut=whole.shortcut, backend=whole.backend
    )


class _Fixed(nn.Module):
    """Some nodes of a graph and constant weights."""

    weights: Tensor

    def __init__(self, whole: RoutedGraph, nodes: Sequence[int], edges: Sequence[int], weights: Tensor) -> None:
        super().__init__()
        self.nodes = nn.ModuleList(whole.nodes[node] for node in nodes)
        number = {node: place for place, node in enumerate(nodes)}
        every = list(whole.topology.edge_numbers())
        self.reads: list[list[tuple[int, int]]] = [[] for _ in nodes]
        for place, edge in enumerate(edges):
            source, node = every[edge]
            self.reads[number[node]].append((number[source], place))
        self.shortcuts = [whole._plan.shortcuts[node] for node in nodes]
        self.register_buffer("weights", weights[list(edges)])
        self.plain = [float(weights[edge]) == 1.0 for edge in edges]

    def forward(self, x: Tensor) -> Tensor:
        outputs: list[Tensor] = []
        for node, reads, shortcut in zip(self.nodes, self.reads, self.shortcuts, strict=True):
            mix = self._mix(outputs, reads) if reads else x
            output = node(mix)
            outputs.append(mix + output if shortcut else output)
        return outputs[-1]

    def _mix(self, outputs: list[Tensor], reads: list[tuple[int, int]]) -> Tensor:
        (source, place), *others = reads
        first = outputs[source]
        if not others and self.plain[place]:
            return first
        total = self.weights[place : place + 1] * first
        for source, place in others:
            total = total + self.weights[place : place + 1] * outputs[source]
        return total.to(first.dtype)


class _Decided(nn.Module):
    """The logarithm of the weights that a gate gives to some edges, as logits of the graph of these edges."""

    edges: Tensor

    def __init__(self, whole: RoutedGraph, small: Topology, edges: Sequence[int]) -> None:
        super().__init__()
        self.router, self.gate = whole.router, whole.gate
        self.topology, self.small = whole.topology, small
        self.register_buffer("edges", torch.tensor(edges, device=next(whole.parameters(), torch.zeros(())).device))

    def forward(self, context: Tensor) -> Tensor:
        logits = self.router(context)
        route: Route = self.gate(logits, allowed=self.topology.on(logits.device).allowed, sample=False)
        decided = self._of_edges(torch.where(route.path, route.weights, 0.0).log())
        # Where nothing that was chosen is kept, the kept sources share the node.
        scores = self._of_edges(route.logits)
        spare = mask_softmax(scores, scores > -torch.inf).log()
        return torch.where((decided > -torch.inf).any(dim=-1, keepdim=True), decided, spare)

    def _of_edges(self, values: Tensor) -> Tensor:
        return self.small.from_edges(self.topology.to_edges(values).index_select(-1, self.edges), fill=-torch.inf)


class _AsDecided(Gate):
    """Reads what has a weight, whose logarithm its logits are."""

    def choose(self, logits: Tensor, allowed: Tensor, **_: object) -> Tensor:
        return allowed & (logits > -torch.inf)

    def weigh(self, logits: Tensor, path: Tensor) -> Tensor:
        return logits.exp().masked_fill(~path, 0.0)


class _InPlace(nn.Module):
    """Stands where a routed graph was in a network, and is called as that was."""

    def __init__(self, body: Extracted) -> None:
        super().__init__()
        self.body = body

    def forward(
        self, x: Tensor, context: Tensor | None = None, *, return_route: bool = False, **_: object
    ) -> Tensor | tuple[Tensor, None]:
        output = self.body(x, context)
        return (output, None) if return_route else output


class _Constant(nn.Module):
    """The embedding of one task."""

    value: Tensor

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.register_buffer("value", value)

    def forward(self, task: Tensor) -> Tensor:
        return self.value.expand(*task.shape[:-1], len(self.value))


def _own_memory(module: nn.Module) -> nn.Module:
    """Gives parameters memory of their own: a part of a bank would hold that of the whole."""
    for parameter in module.parameters():
        parameter.data = parameter.data.clone()
    return module


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _difference(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().amax()) if expected.numel() else 0.0
