"""Recordings of the routes of a model while it runs, by layer name."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape

import torch
from torch import Tensor, nn

from .arguments import check_task
from .checks import backward_pass, refuse_where, under_transform
from .drawing import draw, draw_grid, draw_load
from .levels import RoutedGraph
from .route import Route, listeners
from .statistics import Summary, metrics, summarize
from .topology import Topology

__all__ = ["Record", "Recording", "record"]


@dataclass(frozen=True, eq=False)
class Record:
    """The routes of one routed layer; a :class:`Recording` holds one for each layer.

    Example:
        >>> net = ModuleRouting.mlp(5, 8, 4, 2)
        >>> layer = dynroute.Record(net.topology, passes=(net.route(torch.randn(3, 5)), net.route(torch.randn(4, 5))))
        >>> layer.route.path.shape, layer.summary().samples, layer.draw().startswith("<svg")
        (torch.Size([7, 4, 4]), tensor([7]), True)
    """

    topology: Topology
    """The graph that was routed."""

    passes: tuple[Route, ...]
    """The route of each forward pass, in order."""

    labels: tuple[Tensor, ...] = ()
    """The task ids that :meth:`Recording.label` was given."""

    task_names: tuple[str, ...] = ()
    """The names of the tasks, by id."""

    dropped: tuple[Tensor, ...] = ()
    """The tensor ``gate.dropped`` after each pass, if the gate has a capacity (:attr:`dynroute.Gate.capacity`)."""

    @property
    def route(self) -> Route:
        """The routes of all passes, concatenated along the first batch dimension."""
        if len(self.passes) == 1:
            return self.passes[0]
        batches = [tuple(route.path.shape[:-2]) for route in self.passes]
        if any(not batch or batch[1:] != batches[0][1:] for batch in batches):
            raise ValueError(
                f"`route` joins passes along their first batch dimension, got batch shapes {batches}; "
                "read them one by one from `passes`."
            )
        return Route(*(torch.cat(tensors) for tensors in zip(*self.passes, strict=True)))

    @property
    def task(self) -> Tensor | None:
        """The task id of each sample of :attr:`route`; None if the samples were not labelled."""
        if not self.labels:
            return None
        path = self.route.path
        labels = [label.to(path.device) for label in self.labels]
        task = labels[0] if len(labels) == 1 else torch.cat(labels)
        if task.shape != path.shape[:-2]:
            raise ValueError(
                f"`task` must label every sample of the route, with batch shape {tuple(path.shape[:-2])}, "
                f"got {tuple(task.shape)}; label each pass once, and each token of a sequence. A layer inside a node "
                'may miss samples under any backend but "reference".'
            )
        return task

    @property
    def load_history(self) -> Tensor:
        """The share of the samples for which each node runs, without the output, with shape ``[passes, nodes]``.

        It is 0 for a pass without samples.
        """
        used = [self.topology.used(route.path)[..., :-1].flatten(0, -2).double() for route in self.passes]
        return torch.stack([nodes.sum(dim=0) / max(len(nodes), 1) for nodes in used])

    def metrics(self, *, nodes: bool = True) -> dict[str, float]:
        """Computes statistics of all passes as plain numbers for a logger, see :func:`dynroute.inspect.metrics`.

        Args:
            nodes: Whether to include the load of each node.
        """
        samples = (Route(*(tensor.reshape(-1, *tensor.shape[-2:]) for tensor in route)) for route in self.passes)
        route = Route(*map(torch.cat, zip(*samples, strict=True)))
        dropped = torch.stack(self.dropped).sum() if self.dropped else None
        return metrics(self.topology, route, dropped=dropped, nodes=nodes)

    def draw_load(self, *, title: str = "Load over time") -> str:
        """Draws the load of the nodes from pass to pass, see :func:`dynroute.inspect.draw_load`.

        Args:
            title: The title above the picture.
        """
        return draw_load(self.load_history, title=title)

    def summary(self) -> Summary:
        """Summarizes the routes of each task (:func:`dynroute.inspect.summarize`), or of all samples if unlabelled."""
        return summarize(self.topology, self.route, self.task, num_tasks=len(self.task_names) or None)

    def draw(self, *, title: str = "Mean route", columns: int = 3) -> str:
        """Draws the mean route of each task, or of all samples if they are not labelled, as one SVG picture.

        Args:
            title: The title above the picture.
            columns: The number of tasks side by side.
        """
        summary = self.summary()
        weights, used = summary.weights.nan_to_num(), summary.used.nan_to_num()  # a task without samples uses nothing
        if not self.labels:
            return draw(self.topology, weights[0], used=used[0], title=title)
        return draw_grid(self.topology, weights, used=used, titles=self._names(summary), title=title, columns=columns)

    def _names(self, summary: Summary) -> Sequence[str]:
        if not self.labels:
            return ["all"]
        return self.task_names or [f"task {i}" for i in range(len(summary.samples))]

    def _repr_html_(self) -> str:
        try:
            summary = self.summary()
        except ValueError as error:  # a notebook still shows the other layers
            return f"<p>{escape(str(error))}</p>"
        columns = (summary.samples, summary.num_used, summary.depth, summary.entropy)
        rows = "".join(
            f'<tr><th scope="row">{escape(name)}</th><td>{samples}</td>'
            f"<td>{used:.1f} of {self.topology.num_nodes}</td><td>{depth:.1f}</td><td>{entropy:.2f}</td></tr>"
            for name, samples, used, depth, entropy in zip(
                self._names(summary), *(column.tolist() for column in columns), strict=True
            )
        )
        heads = "".join(f'<th scope="col">{head}</th>' for head in ("task", "samples", "nodes run", "depth", "entropy"))
        return (
            f"{self.draw()}\n<table><caption>Means over the samples</caption>"
            f"<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"
        )


class Recording(Mapping[str, Record]):
    """The records of the layers that ran, by their names in ``module.named_modules()``.

    A model that is itself a routed layer has the name ``""``. Notebooks show a recording as pictures and tables.

    Example:
        >>> net = ModuleRouting.mlp(5, 8, 4, 2)
        >>> with dynroute.record(net) as routes:
        ...     y = net(torch.randn(7, 5))
        >>> routes, isinstance(routes, dynroute.Recording)
        (Recording('': 1), True)
    """

    def __init__(self, topologies: Mapping[str, Topology]) -> None:
        self._topologies = dict(topologies)
        self._passes: dict[str, list[Route]] = {}
        self._dropped: dict[str, list[Tensor]] = {}
        self._labels: tuple[Tensor, ...] = ()
        self._task_names: tuple[str, ...] = ()

    def label(self, task: Tensor, names: Sequence[str] | None = None) -> None:
        """Labels the samples with their tasks, one call for each pass.

        Args:
            task: Task ids, integers with the batch shape of the pass.
            names: The names of the tasks, by id.
        """
        check_task(task)
        if names is not None:
            refuse_where(
                task,
                lambda task: task >= len(names),
                lambda index: (
                    f"`names` must name every task by its id, got {len(names)} names and the id {task[index].item()}."
                ),
            )
        number = len(self._labels)
        known = [[route.path.shape[:-2] for route in each] for each in self._passes.values() if len(each) > number]
        batches = {tuple(shapes[number]) for shapes in known}
        if not number:  # or all samples at once, if the passes are done
            batches |= {(sum(shape[0] for shape in shapes), *shapes[0][1:]) for shapes in known if all(shapes)}
        if batches and tuple(task.shape) not in batches:
            raise ValueError(
                f"`task` must label every sample of pass {number}, with batch shape "
                f"{' or '.join(map(str, sorted(batches)))}, got {tuple(task.shape)}; label each pass once, and each "
                "token of a sequence."
            )
        self._labels += (task.detach(),)
        self._task_names = self._task_names if names is None else tuple(map(str, names))

    def metrics(self, *, nodes: bool = True) -> dict[str, float]:
        """Computes statistics of all layers as plain numbers for a logger, under ``layer/key``.

        The keys are as in :func:`dynroute.inspect.metrics`, without a prefix for a model that is itself a routed
        layer.

        Args:
            nodes: Whether to include the load of each node.

        Example:
            >>> model = nn.Sequential(nn.Linear(5, 8), ModelRouting.ffn(8, 16, 4, TopK(2, capacity=1.0)))
            >>> with dynroute.record(model) as routes:
            ...     y = model(torch.randn(32, 5))
            >>> figures = routes.metrics(nodes=False)
            >>> list(figures)[:5]
            ['1/load_max', '1/dead', '1/router_entropy', '1/unrouted', '1/dropped']
        """
        return {
            f"{name}/{key}" if name else key: value
            for name, record in self.items()
            for key, value in record.metrics(nodes=nodes).items()
        }

    def __getitem__(self, name: str) -> Record:
        if name in self._passes:
            passes, dropped = tuple(self._passes[name]), tuple(self._dropped.get(name, ()))
            return Record(self._topologies[name], passes, self._labels, self._task_names, dropped)
        if name in self._topologies:
            raise KeyError(
                f"no route of {name!r} was recorded; did the model run inside the block, in this thread, and not as "
                "compiled code?"
            )
        layers = ", ".join(map(repr, self._topologies))
        raise KeyError(f"{name!r} is not a routed layer of the model; those are {layers}.")

    def __iter__(self) -> Iterator[str]:
        return iter(self._passes)

    def __len__(self) -> int:
        return len(self._passes)

    def __repr__(self) -> str:
        return f"Recording({', '.join(f'{name!r}: {len(passes)}' for name, passes in self._passes.items())})"

    def _repr_html_(self) -> str:
        if not self:
            return "<p>No routed layer has run.</p>"
        return "\n".join(
            f"<section><h4>{escape(name or 'the model')}</h4>{record._repr_html_()}</section>"
            for name, record in self.items()
        )


@contextmanager
def record(module: nn.Module, *, device: torch.device | str | None = None, detach: bool = True) -> Iterator[Recording]:
    """Records the routes of a model's routed layers while it runs inside the block.

    The modules are not modified, so copies and pickles made inside the block are as usual. The routes remain after the
    block. All forward passes of the thread are recorded, in training and in evaluation, whether they return their
    routes or not. Not counted are :meth:`RoutedGraph.route` alone, and a backward pass that runs inside the block, such
    as the recomputation of activation checkpointing. A layer inside a node sees all samples under the backend
    "reference"; under others it may see only those that reach it.

    Compiled and exported code does not report its routes; record the original model. A block in which no routed layer
    ran ends with a warning. Functions under ``torch.func`` raise an error.

    Args:
        module: A routed layer, or a model that contains some.
        device: The device to store the routes on, for instance "cpu"; default: their own.
        detach: Whether the routes are cut from the graph of autograd. Pass False for a loss of the routes, such as
            :func:`dynroute.losses.load_balance`, in a model whose forward pass does not return them.

    Yields:
        The :class:`Recording`, a mapping that fills as the model runs.

    Example:
        >>> model = nn.Sequential(nn.Linear(5, 8), ModuleRouting.mlp(8, 8, 4, 2))
        >>> with dynroute.record(model) as routes:
        ...     y = model(torch.randn(6, 5))
        >>> routes.label(torch.arange(6) % 2, names=["left", "right"])
        >>> routes["1"].route.path.shape, routes["1"].topology == Topology.dag(5)
        (torch.Size([6, 4, 4]), True)
        >>> routes["1"].summary().samples
        tensor([3, 3])
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"`module` must be a module, got {type(module).__name__}.")
    graphs = {name: part for name, part in module.named_modules() if isinstance(part, RoutedGraph)}
    if not graphs:
        raise ValueError(
            f"`module` must hold a routed layer such as ModuleRouting, but nothing in this {type(module).__name__} "
            "routes; record the model around it."
        )
    names: dict[nn.Module, str] = {graph: name for name, graph in graphs.items()}
    recording = Recording({name: graph.topology for name, graph in graphs.items()})
    started = backward_pass()

    def listen(graph: nn.Module, route: Route) -> None:
        name = names.get(graph)
        if name is None or backward_pass() not in (-1, started):
            return
        if under_transform():
            raise RuntimeError(
                "`record` cannot keep routes of a function under torch.func, such as vmap or grad; "
                "call the model on the batch itself."
            )
        kept = Route(*((tensor.detach() if detach else tensor).to(device) for tensor in route))
        recording._passes.setdefault(name, []).append(kept)
        dropped = getattr(getattr(graph, "gate", None), "dropped", None)
        if isinstance(dropped, Tensor):
            recording._dropped.setdefault(name, []).append(dropped.detach().to(device, copy=True))

    listeners().append(listen)
    try:
        yield recording
    finally:
        listeners().remove(listen)
    if not recording:
        warnings.warn(
            "`record` saw no routed layer run: none of this model was called, or compiled code, which does not report "
            "routes; record the original model.",
            stacklevel=3,
        )
