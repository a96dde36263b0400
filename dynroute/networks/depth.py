"""Dynamic depth routing (D2R), at module level as published, and its relatives at layer and model level (Fig. 7d).

The defaults are the paper's, but for 3, 6, 7 and 8, which are the release's. The released network differs as follows;
for differences of the algorithm see the page on the papers in the documentation:

1. `protect="rsg"` is Eq. 11-12, where the shortcut mixes protected sources too; "input" is the release, which protects
   only the input of a module.
2. A source whose probability equals the threshold exactly is suitable in the paper (Eq. 10) and here, but not in the
   release.
3. The router is a sub-network for each destination in the paper's figure, but one MLP with a split output in the
   release and here.
4. The temperature of a task is an argument of `forward`; in the release the network holds it as T more parameters.
5. The release draws the weights of hidden layers from U(-1/sqrt(n), 1/sqrt(n)) with n the width of the *output*, and
   sets their biases to 0.1: `hidden_init="released"`. The default is torch's initialization; the range of the output
   layer is as in the release.
6. The first module reads ReLU(F(s)) in the release and here, and F(s) in the paper.
7. The mix that the output reads is protected in the release and here, as Eq. 11 has it, but not in the paper's
   Algorithm 1.
8. The release and we have a linear output behind the 16 modules, which is routed too: 17 nodes. In the paper the output
   is one of the modules.
"""

from collections.abc import Sequence
from typing import Unpack

import torch
from torch import Tensor, nn

from ..arguments import Factory, check_choice, check_count, check_flag, check_sizes, shown
from ..banks import LinearBank
from ..gates import Gate
from ..levels import LayerRouting, ModuleRouting, RoutedGraph
from ..levels.perceptron import perceptron
from ..route import Route
from ..routers import MLPRouter
from ..topology import Topology
from .network import Network, Routing, gate_named, set_hidden_init, set_output_range
from .residual import MODULE_KINDS, make_module, make_orthogonal

__all__ = ["DynamicDepthRouting"]

LEVELS = ("module", "layer", "model")


class DynamicDepthRouting(Network):
    r"""Routes every sample through modules to a depth that depends on the sample (D2R; Fig. 2d, Eq. 3-12).

    .. math:: z = G(F(s) \cdot H(\mathcal T)), \qquad m^i = x^i + M^i(x^i), \qquad x^i = \sum_{j<i} p^i_j \hat m^j

    The modules are linear layers with ReLU, the first of which reads ReLU(F(s)); the output layer is routed too.

    Args:
        state_features: The width of the state, without the task.
        num_tasks: The number of tasks.
        out_features: The width of the output.
        level: "module" for D2R itself; "layer" and "model" for its variants with the same parts (Fig. 7d). The paper
            gives no details of them. Our reading is layers of modules that read the layer before, with shortcuts, and
            parallel networks without.
        num_modules: At module level, the number of modules without the output; 16 if None.
        layer_sizes: At layer level, the number of modules in each layer; four layers of four if None.
        num_models: At model level, the number of networks; 4 if None.
        model_depth: At model level, the number of modules of each network; 4 if None.
        width: The width of a module.
        module_kind: The kind of modules: "linear" for Linear - ReLU, as in the paper; "layer-norm" for Linear -
            LayerNorm - ReLU; "residual" for the residual blocks of BRC, Linear - LayerNorm - ReLU - Linear - LayerNorm
            with their input added, by the graph's shortcut if it has one. With "residual", the modules that read F(s)
            are Linear - LayerNorm - ReLU. Modules with LayerNorm are initialized as in BRC.
        trunk_sizes: The widths of F, which embeds the state; no activation follows.
        router_sizes: The hidden widths of G.
        gate: Turns logits into a route, a :class:`~dynroute.Gate` or a name of :func:`~dynroute.networks.gate_named`;
            "top-2" is D2R without SampleK.
        protect: How training stops the gradient to unsuitable modules: "rsg", "input" (the released code), "sg" or
            "none" (D2R without ResRouting).
        shortcut: Whether modules add their input to their output; default: True except at model level.
        state_free: Whether the router reads only the task, H(T).
        hidden_init: The initialization of the other layers: "torch", or "released" for U(-1/sqrt(n), 1/sqrt(n)), where
            n is the width of a layer's output, and biases of 0.1, as in the released code.
        output_init: The output layer is drawn from U(-output_init, output_init); torch's initialization if None.
        backend: How the graph is executed.
        device: The device of the parameters.
        dtype: The type of the parameters.

    Example:
        >>> DynamicDepthRouting(39, 10, 8).describe()
        'DynamicDepthRouting (module level): 684,240 parameters, 17 nodes, 136 routed edges, SampleK(2), rsg'
    """

    def __init__(
        self,
        state_features: int,
        num_tasks: int,
        out_features: int,
        *,
        level: str = "module",
        num_modules: int | None = None,
        layer_sizes: Sequence[int] | None = None,
        num_models: int | None = None,
        model_depth: int | None = None,
        width: int = 128,
        module_kind: str = "linear",
        trunk_sizes: Sequence[int] = (400, 400),
        router_sizes: Sequence[int] = (256, 256),
        gate: Gate | str = "sample-2",
        protect: str = "rsg",
        shortcut: bool | None = None,
        state_free: bool = False,
        hidden_init: str = "torch",
        output_init: float | None = 3e-3,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(state_features, num_tasks, out_features)
        factory: Factory = {"device": device, "dtype": dtype}
        check_choice("level", level, LEVELS)
        check_choice("module_kind", module_kind, MODULE_KINDS)
        check_sizes("trunk_sizes", trunk_sizes)
        for name, option, owner in (
            ("num_modules", num_modules, "module"),
            ("layer_sizes", layer_sizes, "layer"),
            ("num_models", num_models, "model"),
            ("model_depth", model_depth, "model"),
        ):
            if option is not None and level != owner:
                raise ValueError(f'`{name}` belongs to level="{owner}", got {shown(option)} with level="{level}".')
        if shortcut is not None:
            check_flag("shortcut", shortcut)
        check_flag("state_free", state_free)
        if shortcut and level == "model":
            raise ValueError('`shortcut` must be False or None with level="model", whose networks have none, got True.')
        check_sizes("router_sizes", router_sizes, at_least=0)
        check_count("width", width, at_least=1)
        self.level = level
        self.layer_sizes, self.model_depth, self.width = layer_sizes, model_depth, width
        self.trunk_sizes, self.router_sizes = trunk_sizes, router_sizes
        self.hidden_init, self.output_init = hidden_init, output_init
        self.module_kind = module_kind
        self.variant = f"{level} level" + ("" if module_kind == "linear" else f", {module_kind} modules")
        self.state_free = state_free
        self.shortcut = shortcut = level != "model" if shortcut is None else shortcut
        features = trunk_sizes[-1]
        gate = gate_named(gate)

        self.trunk = perceptron((state_features, *trunk_sizes[:-1]), nn.ReLU, out_features=features, **factory)
        self.task = nn.Linear(num_tasks, features, **factory)
        head = nn.Linear(width, out_features, **factory)
        set_output_range(head, output_init)

        def router(topology: Topology) -> MLPRouter:
            return MLPRouter(features, topology, router_sizes, **factory)  # 3: one MLP, split by destination

        def module(depth: int) -> nn.Module:
            return make_module(
                module_kind,
                width if depth else features,
                width,
                first=not depth,
                shortcut=shortcut,
                **factory,
            )

        self.graph: RoutedGraph
        if level == "module":
            count = 16 if num_modules is None else num_modules
            check_count("num_modules", count, at_least=1)
            nodes = [*map(module, range(count)), head]  # 8: the output is a node of its own
            self.graph = ModuleRouting(
                nodes, gate, router(Topology.dag(len(nodes))), shortcut=shortcut, protect=protect, backend=backend
            )
        elif level == "layer":
            sizes = (4, 4, 4, 4) if layer_sizes is None else layer_sizes
            check_sizes("layer_sizes", sizes)
            layers: list[Sequence[nn.Module]] = [
                list(LinearBank(size, width if depth else features, width, nn.ReLU, **factory))
                if module_kind == "linear"
                else [module(depth) for _ in range(size)]
                for depth, size in enumerate(sizes)
            ]
            self.graph = LayerRouting(
                layers,
                gate,
                router(Topology.layered(sizes)),
                head=head,
                shortcut=shortcut,
                protect=protect,
                backend=backend,
            )
        else:
            count = 4 if num_models is None else num_models
            depth = 4 if model_depth is None else model_depth
            check_count("num_models", count, at_least=1)
            check_count("model_depth", depth, at_least=1)
            models = [nn.Sequential(*map(module, range(depth))) for _ in range(count)]
            topology = Topology.parallel(count)
            self.graph = RoutedGraph(
                [*models, head], topology, gate, router(topology), protect=protect, backend=backend
            )
        set_hidden_init(self, hidden_init, outputs=[head])  # 5

    @property
    def num_modules(self) -> int | None:
        """The number of modules without the output at module level; None at other levels."""
        return len(self.graph.nodes) - 1 if self.level == "module" else None

    @property
    def num_models(self) -> int | None:
        """The number of networks at model level; None at other levels."""
        return len(self.graph.nodes) - 1 if self.level == "model" else None

    def reset_module(self, module: nn.Module) -> None:
        super().reset_module(module)
        if self.module_kind != "linear":
            make_orthogonal(module)
        set_hidden_init(module, self.hidden_init, outputs=[])

    def compute(self, state: Tensor, task: Tensor, **routing: Unpack[Routing]) -> tuple[Tensor, Route | None]:
        features = self.trunk(state)
        context = self.task(task)
        if not self.state_free:
            context = features * context
        return self.graph(features.relu(), context, return_route=True, **routing)  # 6: ReLU(F(s))
