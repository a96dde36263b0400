"""Extracting the part of a routed network that some contexts use, as a small and exportable module.

1. If all contexts are equal and so are their routes, for instance for one task and a router that reads only the task,
   weights are constants, and neither router nor gate remains.
2. If contexts differ and take one path, the router remains with the edges of that path and computes their weights.
3. If they take several paths, router and gate choose among the edges that some context takes. The k best of these are
   the k best of all whenever they contain those.

In cases 2 and 3 the router loses the rows of other edges if the gate is :class:`~dynroute.Soft`,
:class:`~dynroute.TopK` or :class:`~dynroute.SampleK` and the router has :meth:`~dynroute.Router.edge_parameters`. Other
gates may read every logit, as :class:`~dynroute.Hard` does for its probability; then only modules are removed.
"""

import copy
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from .arguments import check_count, check_number, check_tensor, shown
from .banks import own_memory
from .checks import is_own
from .functional import mask_softmax
from .gates import ExpertChoice, Gate, SampleK, Soft, TopK
from .growth import find_graph, has_slices, slice_edges
from .levels import ModelRouting, RoutedGraph
from .levels.graph import begins_in_place
from .networks import Network
from .route import Route
from .routers import Router
from .topology import Topology

__all__ = ["Extracted", "Extraction", "TaskNetwork", "extract"]


class Extraction(NamedTuple):
    """The report of :func:`extract`: the kept nodes and the deviation from the whole net.

    Example:
        >>> net = ModelRouting.mlp(5, 8, 4, 2, gate=TopK(2))
        >>> report: dynroute.Extraction = dynroute.extract(net, torch.randn(5)).report
        >>> len(report.nodes), report.coverage
        (3, 1.0)
    """

    nodes: tuple[int, ...]
    """The kept nodes, by their numbers in the whole graph."""

    coverage: float
    """The share of the contexts whose routes are complete."""

    deviation: float | None
    """The largest difference from the outputs of the whole net over all contexts; None without inputs."""

    parameters: int
    """The number of parameters that are left."""

    parameters_before: int
    """The number of parameters of the whole net."""

    reads: str
    """The part of routing that is left, "nothing", "weights" of one path, or "routes".

    "nothing" is right only if the router sees the same context later, for instance the one-hot of one task.
    """


class Extracted(nn.Module):
    """The part of a routed graph that some contexts use; :func:`extract` makes it.

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
        self.report = Extraction(*report)  # `from_pretrained` gives a plain tuple
        """The kept nodes and the deviation from the whole net."""
        self.train(False)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Computes the output.

        Args:
            x: The input, with shape ``[*, ...]``.
            context: The input of the router, `x` itself if None; ignored if no router is left.
        """
        routed = isinstance(self.body, RoutedGraph)
        output: Tensor = self.body(x, context, sample=False) if routed else self.body(x)
        for module in self.shared:  # these run for every sample
            output = output + module(x)
        return output

    def train(self, mode: bool = True) -> Self:
        """Keeps evaluation mode."""
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
        """The kept nodes and the deviation from the whole net."""
        self.train(False)

    def forward(self, state: Tensor) -> Tensor:
        """Computes the output for states with shape ``[*, state_features]``."""
        task = self.task.to(state.dtype).expand(*state.shape[:-1], len(self.task))
        output, _ = self.network.compute(state, task)
        return output

    def train(self, mode: bool = True) -> Self:
        """Keeps evaluation mode."""
        return super().train(False)


def extract(
    net: nn.Module, context: Tensor, coverage: float = 1.0, *, task: int | None = None, x: Tensor | None = None
) -> Extracted | TaskNetwork:
    """Makes a module with only the parts that the routes of some contexts use in evaluation.

    With a coverage of 1 it computes the same as the net for these contexts, up to rounding, and for others whose routes
    use the same edges. But if the contexts and their routes are all equal, as for a single one, the weights become
    constants, which fit no other context; :attr:`Extraction.reads` is then "nothing". With a lower coverage the least
    used nodes are removed while the routes of this share of the contexts stay complete;
    :attr:`Extraction.deviation` measures the error for the others. The net is not changed and shares no memory with
    the result.

    Args:
        net: A routed graph, or one of the networks of :mod:`dynroute.networks`.
        context: For a graph, one or more typical contexts, with shape ``[*, context_features]``. For a network, states,
            with shape ``[*, state_features]``.
        coverage: The share of the contexts whose routes stay complete.
        task: For a network, the id of the task; the result takes only states.
        x: For a graph, inputs that belong to the contexts, to measure the deviation; default: the contexts, if they are
            valid inputs.

    Returns:
        For a graph an :class:`Extracted`, called as ``small(x, context)``; for a network a :class:`TaskNetwork`, called
        as ``small(state)``. Both have a `report`.

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
    _check_plain(graph)
    check_tensor("context", context)
    check_number("coverage", coverage, above=0, at_most=1)
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


def _check_plain(graph: RoutedGraph) -> None:
    """Raises an error if a call of a graph does more than route, which the extracted module would leave out."""
    name = type(graph).__name__
    own = vars(graph).get("forward")
    if is_own(type(graph).forward) or (own is not None and not hasattr(own, "_torchdynamo_orig_callable")):
        raise ValueError(
            f"`net` must have the forward of a routed graph, got a {name} with its own, which the result would leave "
            "out; put that code into a module around the graph, and extract the graph."
        )
    if graph._forward_hooks or graph._forward_pre_hooks:
        raise ValueError(
            f"`net` must not have forward hooks on its graph, which the result would leave out, got a {name} with some;"
            " remove them first."
        )


@torch.inference_mode(False)  # what this makes may be differentiated
@torch.no_grad()
def _of_network(net: Network, state: Tensor, coverage: float, task: int) -> TaskNetwork:
    net = copy.deepcopy(net).train(False)
    graph = find_graph("net", net)
    calls: list[tuple[Tensor, Tensor]] = []

    def keep_inputs(_: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        x, context = (*inputs, keywords.get("context"))[:2]
        calls.append((x, x if context is None else context))

    ids = torch.full(state.shape[:-1], task, device=state.device)
    handle = graph.register_forward_pre_hook(keep_inputs, with_kwargs=True)
    expected = net(state, ids)
    handle.remove()
    before = _count(net)
    (x, context), one_hot = calls[0], torch.zeros(net.num_tasks, device=state.device)
    one_hot[task] = 1
    body = _of_graph(graph, context, coverage, x)

    name = next(name for name, part in net.named_children() if part is graph)
    setattr(net, name, _InPlace(body))
    embedding = net._modules.get("task")
    if type(embedding) is nn.Linear and embedding.in_features == net.num_tasks:
        net.task = _Constant(embedding(one_hot.to(embedding.weight.dtype)))
    small = TaskNetwork(net, one_hot, body.report)
    deviation = _difference(small(state), expected)
    small.report = body.report._replace(deviation=deviation, parameters=_count(small), parameters_before=before)
    return small


@torch.inference_mode(False)  # what this makes may be differentiated
@torch.no_grad()
def _of_graph(graph: RoutedGraph, context: Tensor, coverage: float, x: Tensor | None) -> Extracted:
    whole = copy.deepcopy(graph).train(False)
    topology = whole.topology
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
    for node, reads in zip(topology.destinations, live.any(dim=0).any(dim=-1).tolist(), strict=True):
        if node in nodes and not reads:  # alone, it would read the input
            raise ValueError(
                f"`context` must lead to a source of every node that runs, but node {node} reads none for all "
                "contexts; add contexts for which it reads one."
            )

    one_path = bool((live == live[0]).all())
    weights = topology.to_edges(route.weights.reshape(-1, *topology.path_shape))[covered]
    # A feature of the context that is small beside the others may still decide the route.
    if one_path and _are_equal(context.reshape(len(paths), -1)) and _are_equal(weights[:, edges], ulps=64):
        body: nn.Module = _Fixed(whole, nodes, edges, weights[0])
        reads = "nothing"
    else:
        if bool((least := weights[:, edges].min()) < 0):
            raise ValueError(
                "`net` must have a gate whose weights are at least 0 for contexts that differ, since the result "
                f"computes with their logarithms, but {type(graph.gate).__name__} gives {float(least):.3g}; extract it "
                "for one context at a time."
            )
        body = _routed(whole, nodes, edges, one_path=one_path)
        reads = "weights" if one_path else "routes"
    shared: Iterable[nn.Module] = whole.shared if isinstance(whole, ModelRouting) else []
    report = Extraction(tuple(nodes), float(covered.float().mean()), None, 0, _count(graph), reads)
    own_memory(body)
    small = Extracted(body, report, shared)
    small.report = report._replace(parameters=_count(small))
    if expected is not None:
        small.report = small.report._replace(deviation=_difference(small(inputs, context), expected))
    return small


def _covered(used: Tensor, coverage: float) -> Tensor:
    """The samples that remain complete when the least used nodes are removed, while enough samples are left."""
    covered = used.new_ones(len(used))
    enough = coverage * len(used) - 1e-6
    for node in used.sum(dim=0).argsort(stable=True).tolist():
        without = covered & ~used[:, node]
        if int(without.sum()) >= enough:
            covered = without
    return covered


def _are_equal(rows: Tensor, ulps: int = 8) -> bool:
    """Whether rows are equal up to the rounding of a product over a batch."""
    if not rows.is_floating_point() or not rows.numel():
        return bool((rows == rows[0]).all())
    spread = (rows - rows[0]).abs().amax()
    return bool(spread <= ulps * torch.finfo(rows.dtype).eps * rows[0].abs().amax())


def _outputs(graph: RoutedGraph, x: Tensor, context: Tensor, *, needed: bool) -> Tensor | None:
    """The outputs of the whole graph; None if the contexts are not valid inputs and no inputs were given."""
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
    """A graph of some nodes and edges, with the part of router and gate that it needs."""
    number = {node: place for place, node in enumerate(nodes)}
    all_edges = list(whole.topology.edge_numbers())
    parents: list[list[int]] = [[] for _ in nodes]
    for edge in edges:
        source, node = all_edges[edge]
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
    """Some nodes of a graph with constant weights."""

    weights: Tensor

    def __init__(self, whole: RoutedGraph, nodes: Sequence[int], edges: Sequence[int], weights: Tensor) -> None:
        super().__init__()
        self.nodes = nn.ModuleList(whole.nodes[node] for node in nodes)
        number = {node: place for place, node in enumerate(nodes)}
        all_edges = list(whole.topology.edge_numbers())
        self.reads: list[list[tuple[int, int]]] = [[] for _ in nodes]
        for place, edge in enumerate(edges):
            source, node = all_edges[edge]
            self.reads[number[node]].append((number[source], place))
        self.shortcuts = [whole._plan.shortcuts[node] for node in nodes]
        self.register_buffer("weights", weights[list(edges)])
        self.plain = [float(weights[edge]) == 1.0 for edge in edges]
        self.overwrites = [begins_in_place(node) is not None for node in self.nodes]

    def forward(self, x: Tensor) -> Tensor:
        outputs: list[Tensor] = []
        for node, reads, shortcut, overwrites in zip(
            self.nodes, self.reads, self.shortcuts, self.overwrites, strict=True
        ):
            mix = self._mix(outputs, reads) if reads else x
            if overwrites:  # the mix may be the output of another node
                mix = mix.clone()
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
    """Computes logits of a smaller graph: the logarithms of the weights that the whole gate gives to its edges."""

    edges: Tensor

    def __init__(self, whole: RoutedGraph, small: Topology, edges: Sequence[int]) -> None:
        super().__init__()
        self.router, self.gate = whole.router, whole.gate
        self.topology, self.small = whole.topology, small
        self.register_buffer("edges", torch.tensor(edges, device=next(whole.parameters(), torch.zeros(())).device))

    def forward(self, context: Tensor) -> Tensor:
        logits = self.router(context)
        route: Route = self.gate(logits, allowed=self.topology.on(logits.device).allowed, sample=False)
        weights = torch.where(route.path, route.weights, 0.0)
        decided = self._of_edges(_log(weights))
        # If none of the sources that a node mixes is kept, it mixes the kept ones by the softmax.
        mixes = (weights != 0).any(dim=-1, keepdim=True)
        scores = self._of_edges(torch.where(mixes, route.logits, -torch.inf))
        fallback = _log(mask_softmax(scores, scores > -torch.inf))
        return torch.where((decided != -torch.inf).any(dim=-1, keepdim=True), decided, fallback)

    def _of_edges(self, values: Tensor) -> Tensor:
        return self.small.from_edges(self.topology.to_edges(values).index_select(-1, self.edges), fill=-torch.inf)


def _log(weights: Tensor) -> Tensor:
    """The logarithm of weights, -inf for those that are 0, which have no gradient."""
    return torch.where(weights != 0, weights, 1.0).log().masked_fill(weights == 0, -torch.inf)


class _AsDecided(Gate):
    """Reads every source with a weight; the logits are logarithms of the weights."""

    @property
    def may_be_empty(self) -> bool:
        return True  # the router may score all kept sources -inf

    def choose(self, logits: Tensor, allowed: Tensor, **_: object) -> Tensor:
        return allowed & (logits > -torch.inf)

    def weigh(self, logits: Tensor, path: Tensor) -> Tensor:
        return logits.exp().masked_fill(~path, 0.0)


class _InPlace(nn.Module):
    """Replaces a routed graph in a network and takes the same call."""

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


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _difference(output: Tensor, expected: Tensor) -> float:
    return float((output - expected).abs().amax()) if expected.numel() else 0.0
