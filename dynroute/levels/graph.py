"""The routed graph of any topology, which the four levels construct."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Self, TypedDict, Unpack, overload

import torch
from torch import Tensor, nn

from ..arguments import check_choice, check_flag, check_generator, check_modules, check_noise, check_tensor, shown
from ..banks import are_adjacent, keep_adjacent
from ..checks import full_precision, is_autocast, records_gradients
from ..execution import Pass, Plan, check_backend, run_graph
from ..functional import gumbel_noise, suitable_masked
from ..gates import Gate
from ..resetting import reset_parts
from ..route import Route, report
from ..routers import LinearRouter, Router, RouterNoise
from ..saving import Pretrained
from ..topology import Topology

__all__ = ["RoutedGraph", "Routing", "begins_in_place", "check_input_kept", "input_features"]

PROTECT_MODES = ("rsg", "input", "sg", "none")


class Routing(TypedDict, total=False):
    """The routing keywords of a forward pass, see :meth:`dynroute.RoutedGraph.forward`."""

    path: Tensor | Route | None
    temperature: float | Tensor
    sample: bool | None
    generator: torch.Generator | None
    noise: Tensor | None
    router_noise: RouterNoise | None


class RoutedGraph(Pretrained):
    r"""Runs modules along a route that a router and a gate decide for each sample.

    .. math:: m^i = M^i \Bigl( \sum_j p^i_j \, m^j \Bigr)

    Args:
        modules: One module for each node, in topological order.
        topology: Which earlier nodes each node may read.
        gate: Turns logits into a route.
        router: Turns a context into logits with shape ``[*, T, S]``, a :class:`Router` or any module; a
            :class:`LinearRouter` if None.
        shortcut: Whether the nodes that read others, the last one excepted, add their input to their output (Eq. 11).
        protect: How training stops the gradient to sources that do not suit the current logits (Eq. 10): "rsg" keeps
            the gradient of the shortcut (Eq. 11-12), "input" does so for the input of the module only (the released
            code of D2R), "sg" stops all of it (Eq. 9), "none" stops nothing.
        backend: How the graph is executed, see :attr:`backend`.
        context_features: The width of the context for the default router; default: the width of the input, read from
            the linear layers.

    Example:
        >>> topology = Topology([[], [], [0, 1]])
        >>> modules = [nn.Linear(5, 8), nn.Linear(5, 8), nn.Linear(8, 2)]
        >>> net = RoutedGraph(modules, topology, Soft(), LinearRouter(5, topology))
        >>> net(torch.zeros(7, 5)).shape
        torch.Size([7, 2])
    """

    _execute: Callable[[Pass, str], Tensor] = staticmethod(run_graph)
    """Runs a pass with a backend; replaced if the modules are sharded over processes."""

    _context_name = "context"
    """The name of the router's input in errors."""

    def __init__(
        self,
        modules: Iterable[nn.Module],
        topology: Topology,
        gate: Gate,
        router: nn.Module | None = None,
        *,
        shortcut: bool = False,
        protect: str = "none",
        backend: str = "auto",
        context_features: int | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(topology, Topology):
            raise TypeError(f"`topology` must be a Topology, got {topology!r}; for instance Topology.dag(8).")
        modules = check_modules("modules", modules)
        if len(modules) != topology.num_nodes:
            raise ValueError(
                f"`modules` must hold one module for each of the {topology.num_nodes} nodes, got {len(modules)}."
            )
        if not isinstance(gate, Gate):
            raise TypeError(f"`gate` must be a Gate such as TopK(2), got {gate!r}.")
        if router is None:
            router = _default_router(modules, topology, context_features)
        elif context_features is not None:
            raise ValueError(
                f"`context_features` must be None beside a router, which has its own width, got {context_features}."
            )
        if not isinstance(router, nn.Module):
            raise TypeError(f"`router` must be a module such as LinearRouter(...), got {router!r}.")
        if isinstance(router, Router) and router.topology != topology:
            raise ValueError(
                f"`router` must be made for the graph's topology {topology}, got one for {router.topology}."
            )
        check_flag("shortcut", shortcut)

        self._shortcut = shortcut
        self.arrange(modules, topology)
        like = next(router.parameters(), next(self.nodes.parameters(), None))
        gate.bind(topology, None if like is None else like.device)
        self.gate = gate
        self.router = router
        self.protect = protect
        self.backend = backend

    def arrange(self, modules: Sequence[nn.Module], topology: Topology, *, adjacent: bool = False) -> None:
        """Replaces the modules and the topology; :func:`dynroute.grow` changes the router as well.

        Args:
            modules: One module for each node, in topological order.
            topology: Which earlier nodes each node may read.
            adjacent: Whether to store the parameters of neighbours that read the same nodes side by side.
        """
        self._check_modules(modules, topology, [self._name_of(node, topology) for node in range(len(modules))])
        self.nodes = nn.ModuleList(modules)
        self.topology = topology
        self._inputs = tuple(node for node, parents in enumerate(topology.parents) if not parents)
        self._plan = Plan(topology, self._shortcuts(topology))
        for span in self._plan.groups if adjacent else ():
            keep_adjacent(list(modules)[slice(*span)])
        self._banks = [span for span in self._plan.groups if are_adjacent(list(self.nodes)[slice(*span)])]

    def _shortcuts(self, topology: Topology) -> list[bool]:
        """Whether each node of a topology has a shortcut."""
        return [self._shortcut and i in topology.destinations[:-1] for i in range(topology.num_nodes)]

    def _check_modules(self, modules: Sequence[nn.Module], topology: Topology, names: Sequence[str]) -> None:
        """Raises an error that names a module unless modules fit a topology and each other."""
        shortcuts = self._shortcuts(topology)
        for node, module in enumerate(modules):
            if shortcuts[node] or not topology.parents[node]:
                check_input_kept(names[node], module)
        _check_widths(modules, topology, names)

    def _name_of(self, node: int, topology: Topology) -> str:
        """The argument that holds the module of a node, for errors."""
        return f"modules[{node}]"

    @property
    def backend(self) -> str:
        """The execution backend, a name of :data:`~dynroute.execution.backends.BACKENDS`."""
        return self._backend

    @backend.setter
    def backend(self, name: str) -> None:
        self._backend = check_backend(name)

    @property
    def protect(self) -> str:
        """The way to stop the gradient to unsuitable sources in training."""
        return self._protect

    @protect.setter
    def protect(self, mode: str) -> None:
        check_choice("protect", mode, PROTECT_MODES)
        self._protect = mode

    @property
    def shortcut(self) -> bool:
        """Whether the nodes that read others, the last one excepted, add their input to their output."""
        return any(self._plan.shortcuts)

    def route(
        self,
        context: Tensor,
        *,
        path: Tensor | Route | None = None,
        temperature: float | Tensor = 1.0,
        sample: bool | None = None,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
        router_noise: RouterNoise | None = None,
    ) -> Route:
        """Decides the route without running the modules; takes the arguments of :meth:`forward`."""
        logits = self._logits(context)
        self._check_logits(logits)
        self._check_temperature(temperature, logits)
        if sample is not None:
            check_flag("sample", sample)
        sample = self.training if sample is None else sample
        check_generator(generator)
        decide: Callable[..., Route] = partial(
            self.gate,
            logits,
            allowed=self.topology.on(logits.device).allowed,
            path=path,
            temperature=temperature,
            sample=sample,
        )
        if noise is not None and (path is not None or not sample or not self.gate.takes_noise):
            check_noise(noise, logits)  # else the gate checks it
        if path is not None or not sample:  # nothing is drawn, and noise has no effect
            if router_noise is not None and (router := self._noisy_router(router_noise)):
                router.check_noise(context, router_noise)
            return decide(generator=generator, noise=noise)

        scores = self._scores(context, logits, generator, router_noise)
        if noise is not None and scores is not None and router_noise is None:
            generator = None  # it drew the noise of the router
        if noise is None and self.gate.takes_noise:
            shape = (*logits.shape[:-2], self.topology.num_edges)
            drawn = gumbel_noise(shape, generator=generator, device=logits.device)
            noise, generator = self.topology.from_edges(drawn, fill=0.0), None
        return decide(generator=generator, noise=noise, scores=scores)

    @overload
    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        return_route: Literal[False] = False,
        **routing: Unpack[Routing],
    ) -> Tensor: ...

    @overload
    def forward(
        self, x: Tensor, context: Tensor | None = None, *, return_route: Literal[True], **routing: Unpack[Routing]
    ) -> tuple[Tensor, Route]: ...

    @overload
    def forward(
        self, x: Tensor, context: Tensor | None = None, *, return_route: bool, **routing: Unpack[Routing]
    ) -> Tensor | tuple[Tensor, Route]: ...

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        path: Tensor | Route | None = None,
        temperature: float | Tensor = 1.0,
        sample: bool | None = None,
        generator: torch.Generator | None = None,
        return_route: bool = False,
        noise: Tensor | None = None,
        router_noise: RouterNoise | None = None,
    ) -> Tensor | tuple[Tensor, Route]:
        """Routes every sample through the graph.

        Args:
            x: The input of the nodes without sources. Its first dimensions are the batch shape ``*`` of the context.
            context: The input of the router, with shape ``[*, context_features]``; `x` itself if None.
            path: A recorded path to replay, boolean with shape ``[*, T, S]``, or the route that holds it (Eq. 8).
            temperature: Divides the logits when a path is sampled; a number or a tensor with shape ``[*]`` (Eq. 13).
            sample: Whether a gate that can sample does so; default: in training mode.
            generator: The random generator for a path that is sampled, and for the noise of the router.
            return_route: Whether to return the route beside the output.
            noise: Gumbel noise that was drawn before, with shape ``[*, T, S]``, for functions that are compiled or
                replayed. A generator beside it must be for the noise of the router.
            router_noise: The noise of a router, drawn before by :meth:`Router.draw_noise`, for the same purpose. Beside
                a path, and where nothing is sampled, neither noise has an effect.

        Returns:
            The output of the last node, or the output and the :class:`Route`.
        """
        self._check_input(x)
        context = x if context is None else context
        route = self.route(
            context,
            path=path,
            temperature=temperature,
            sample=sample,
            generator=generator,
            noise=noise,
            router_noise=router_noise,
        )
        self._check_batch(x, context, route)
        report(self, route)

        protected = self.training and self.protect != "none" and records_gradients()
        suitable = self._suitable(route) if protected else None
        max_sources = self.gate.max_sources if path is None else None  # another gate may have recorded the path
        call = Pass(self._plan, list(self.nodes), x, route.weights, suitable, self.protect, max_sources)
        output = self._finish(x, self._execute(call, self.backend))
        return (output, route) if return_route else output

    if TYPE_CHECKING:
        __call__ = forward  # torch declares that calls take and return anything

    def constructor_arguments(self) -> dict[str, Any]:
        """The arguments that construct an equal graph; override it in a class with another constructor."""
        return {
            "modules": list(self.nodes),
            "topology": self.topology,
            "gate": self.gate.unbound(),
            "router": self.router,
            "shortcut": self._shortcut,  # `shortcut` is False while no node has one
            "protect": self.protect,
            "backend": self.backend,
        }

    def reset_parameters(self) -> None:
        """Resets all parameters of the modules, the router and the gate; each part needs a `reset_parameters`."""
        reset_parts(self)

    def _finish(self, x: Tensor, output: Tensor) -> Tensor:
        """Computes the output of the layer from the output of the last node."""
        return output

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        adjacent = [modules for modules in self._bank_members() if are_adjacent(modules)]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for modules in adjacent:
            keep_adjacent(modules)
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        for modules in self._bank_members():
            keep_adjacent(modules)

    @property
    def has_bank(self) -> bool:
        """Whether some neighbours that read the same nodes share memory, as in a :class:`LinearBank`."""
        return any(map(are_adjacent, self._bank_members()))

    def _bank_members(self) -> list[list[nn.Module]]:
        """The modules of each group whose parameters shared memory when the graph was made."""
        return [list(self.nodes)[slice(*span)] for span in self._banks]

    def extra_repr(self) -> str:
        return f"{self.topology}, shortcut={self.shortcut}, protect={self.protect!r}, backend={self.backend!r}"

    def _logits(self, context: Tensor) -> Tensor:
        """The router's logits, in float32 also under autocast, where the context may have 16 bits."""
        check_tensor("context", context)
        suspended = full_precision(context)
        if not isinstance(suspended, nullcontext) and context.is_floating_point():
            context = context.to(torch.promote_types(context.dtype, torch.float32))
        with suspended:
            logits: Tensor = self.router(context)
        return logits

    def _scores(
        self, context: Tensor, logits: Tensor, generator: torch.Generator | None, drawn: RouterNoise | None
    ) -> Tensor | None:
        """The scores that choose in place of the logits; None if the router adds no noise."""
        router = self._noisy_router(drawn)
        if router is None:
            return None
        return router.perturb(context, logits, router.draw_noise(context, generator) if drawn is None else drawn)

    def _noisy_router(self, drawn: RouterNoise | None) -> Router | None:
        """The router if it adds noise, else None; raises an error if noise was drawn and it adds none."""
        router = self.router
        if isinstance(router, Router) and router.adds_noise:
            return router
        if drawn is not None:
            raise ValueError(
                f"`router_noise` must be None for a router that adds none, such as this {type(router).__name__}; "
                "give the router noise, jitter or dropout."
            )
        return None

    def _suitable(self, route: Route) -> Tensor:
        sources = self.topology.on(route.logits.device).allowed.sum(dim=-1, keepdim=True)
        return suitable_masked(route.logits, sources)

    def _check_input(self, x: Tensor) -> None:
        check_tensor("x", x)
        for node in self._inputs:
            linear = _first_linear(self.nodes[node])
            if linear is None:
                continue
            width = linear.in_features
            if x.dim() == 0 or x.shape[-1] != width:
                raise ValueError(
                    f"`x` must have {width} features, which node {node} reads, got shape {tuple(x.shape)}."
                )
            dtype = _dtype(linear, x)
            if dtype is not None and dtype != x.dtype:
                self._check_dtypes(x)
                raise TypeError(
                    f"`x` must be {dtype} like the parameters of node {node}, got {x.dtype}; "
                    f"convert it with `x.to({dtype})`, or the network with `net.to(x.dtype)`."
                )

    def _check_dtypes(self, x: Tensor) -> None:
        """Raises an error if nodes that read the input have parameters of several types."""
        layers = [(node, _first_linear(self.nodes[node])) for node in self._inputs]
        types = [(node, _dtype(linear, x)) for node, linear in layers if linear is not None]
        (first, dtype), *others = [(node, dtype) for node, dtype in types if dtype is not None]
        for node, other in others:
            if other != dtype:
                raise TypeError(
                    f"`x` must be read by nodes of one type, got {dtype} in node {first} and "
                    f"{other} in node {node}; convert them, for instance with `net.to(x.dtype)`."
                )

    def _check_logits(self, logits: Tensor) -> None:
        if not isinstance(logits, Tensor) or not logits.is_floating_point():
            hint = "convert them with `.float()`" if isinstance(logits, Tensor) else "return the logits alone"
            raise TypeError(
                f"`router` must return floating-point logits with shape {self.topology._slots}, got {shown(logits)} "
                f"from this {type(self.router).__name__}; {hint}."
            )
        if logits.shape[-2:] != self.topology.path_shape:
            raise ValueError(
                f"`router` must return logits with shape {self.topology._slots}, got {tuple(logits.shape)}; "
                "was it made for another topology?"
            )

    def _check_temperature(self, temperature: float | Tensor, logits: Tensor) -> None:
        if isinstance(temperature, Tensor) and temperature.dim() and temperature.shape != logits.shape[:-2]:
            raise ValueError(
                f"`temperature` must be a number or have the batch shape {tuple(logits.shape[:-2])}, "
                f"got {tuple(temperature.shape)}; give one value per sample."
            )

    def _check_batch(self, x: Tensor, context: Tensor, route: Route) -> None:
        batch = route.weights.shape[:-2]
        bare = x.dim() == len(batch) and x.is_floating_point()  # ids have no features
        if bare and x.shape == batch and context.is_floating_point():
            raise ValueError(
                f"`x` must have features behind the batch shape {tuple(batch)} of `{self._context_name}`, got shape "
                f"{tuple(x.shape)}; `x.unsqueeze(-1)` has one."
            )
        if x.shape[: len(batch)] != batch or bare:
            hint = f"pass one {self._context_name} per sample."
            if not context.is_floating_point():
                hint = "an integer context holds task ids; convert a one-hot with `.float()`."
            raise ValueError(
                f"`{self._context_name}` must have the batch shape of `x`, got {self._context_name} "
                f"{tuple(context.shape)} and x {tuple(x.shape)}; {hint}"
            )


def _default_router(nodes: Sequence[nn.Module], topology: Topology, context_features: int | None) -> Router:
    """A linear router of the width of the input, with the device and the first floating type of the modules."""
    if context_features is None:
        widths = {input_features(nodes[node]) for node, parents in enumerate(topology.parents) if not parents}
        context_features = widths.pop() if len(widths) == 1 else None
        if context_features is None:
            raise ValueError(
                "`context_features` must be given where no router is, unless all modules that read the input begin "
                "with a linear layer of one width; for instance context_features=64, or router=LinearRouter(...)."
            )
    parameters = [parameter for node in nodes for parameter in node.parameters()]
    device = next((parameter.device for parameter in parameters), None)
    dtype = next((parameter.dtype for parameter in parameters if parameter.is_floating_point()), None)
    return LinearRouter(context_features, topology, device=device, dtype=dtype)


def input_features(module: nn.Module) -> int | None:
    """The width of the input that a module reads; None if its layers do not say."""
    if type(module) is nn.Sequential:
        reads = next((part for part in module if not _keeps_width(part)), None)
        return None if reads is None else input_features(reads)
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        return module.normalized_shape[0] if len(module.normalized_shape) == 1 else None
    width = getattr(module, "in_features", None)
    return width if isinstance(width, int) and width > 0 else None


def _check_widths(modules: Sequence[nn.Module], topology: Topology, names: Sequence[str]) -> None:
    """Raises an error if linear modules cannot read what those before them give."""
    layers = [(_linear_at(module, 0), _linear_at(module, -1)) for module in modules]
    for node, parents in enumerate(topology.parents):
        given = [(j, last.out_features) for j in parents if (last := layers[j][1]) is not None]
        for source, width in given:
            if width != given[0][1]:
                raise ValueError(
                    f"`{names[source]}` must give as many features as `{names[given[0][0]]}`, since node {node} reads "
                    f"both, got {width} and {given[0][1]}; make their last layers equally wide."
                )
        first = layers[node][0]
        if given and first is not None and first.in_features != given[0][1]:
            raise ValueError(
                f"`{names[node]}` must read the {given[0][1]} features that `{names[given[0][0]]}` gives, got a linear "
                f"layer that reads {first.in_features}; the input of the graph is read by nodes without sources alone."
            )


def _linear_at(module: nn.Module, place: int) -> nn.Linear | None:
    """The linear layer that a module begins (0) or ends (-1) with, apart from elementwise layers."""
    while type(module) is nn.Sequential:
        layers = [layer for layer in module if not _keeps_width(layer)]
        if not layers:
            return None
        module = layers[place]
    return module if type(module) is nn.Linear else None


def begins_in_place(module: nn.Module) -> nn.Module | None:
    """The layer that a module begins with, if it overwrites its input."""
    for layer in _layers(module):
        if getattr(layer, "inplace", False):
            return layer
        if not isinstance(layer, _RETURN_THEIR_INPUT):
            return None
    return None


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    """The layers of a module in order, out of all plain sequences in it."""
    if type(module) is not nn.Sequential:
        yield module
        return
    for part in module:
        yield from _layers(part)


_RETURN_THEIR_INPUT = (nn.Identity, nn.modules.dropout._DropoutNd, nn.Flatten, nn.Unflatten)
"""Layers whose output may be their input, or a view of it."""


def check_input_kept(name: str, module: nn.Module) -> None:
    """Raises an error that names a module if it overwrites its input."""
    first = begins_in_place(module)
    if first is not None:
        raise ValueError(
            f"`{name}` must not begin with a layer that works in place, got {first}: other modules or the shortcut "
            "read its input too, which dropout and nn.Flatten before it may return as it is; write inplace=False."
        )


def _keeps_width(module: nn.Module) -> bool:
    """Whether a module works elementwise and so accepts any width."""
    plain = type(module).__module__ == "torch.nn.modules.activation" and not list(module.parameters())
    return (plain and not isinstance(module, nn.GLU)) or isinstance(module, nn.Identity | nn.Dropout)


def _dtype(linear: nn.Linear, x: Tensor) -> torch.dtype | None:
    """The type of input that a layer takes; None if any type will do or it is unknown."""
    weight = linear._parameters.get("weight")
    if type(weight) not in (Tensor, nn.Parameter) or (x.is_floating_point() and is_autocast(x.device.type)):
        return None
    assert weight is not None
    return weight.dtype


def _first_linear(module: nn.Module) -> nn.Linear | None:
    """The linear layer that reads a module's input; None if another module or a hook comes first."""
    while type(module) is nn.Sequential and len(module) and not module._forward_pre_hooks:
        module = module[0]
    return module if type(module) is nn.Linear and not module._forward_pre_hooks else None
