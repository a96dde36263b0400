"""The base class of the networks, from a state and a task to a vector."""

import copy
import difflib
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from ..arguments import check_choice, check_counts, check_floating, check_input, check_number, shown
from ..compositional import CompositionalLinear
from ..gates import BalancedTopK, Gate, Hard, SampleK, Soft, TopK
from ..levels import RoutedGraph
from ..levels.graph import Routing
from ..resetting import reset_all
from ..route import Route
from ..routers import RouterNoise
from ..routers.task import task_one_hot
from ..saving import kept_arguments
from ..topology import Topology

__all__ = ["Network", "Routing", "check_table", "gate_named", "set_hidden_init", "set_output_range"]

CHOOSING = {"top": TopK, "sample": SampleK, "balanced": BalancedTopK}
"""The gates whose names end in the number of sources that they read."""

LINEAR = (nn.Linear, CompositionalLinear)
"""The layers that :func:`set_hidden_init` and :func:`set_output_range` initialize."""


class Network(nn.Module, ABC):
    """The base class of networks for several tasks.

    To write a network, override :meth:`compute`. Any module with the signatures of the constructor and of
    :meth:`forward` can replace one.

    Args:
        state_features: The width of the state, without the task.
        num_tasks: The number of tasks.
        out_features: The width of the output.
    """

    def __init__(self, state_features: int, num_tasks: int, out_features: int) -> None:
        super().__init__()
        check_counts(state_features=state_features, num_tasks=num_tasks, out_features=out_features)
        self.state_features = state_features
        self.num_tasks = num_tasks
        self.out_features = out_features
        self.variant = ""
        """The form of the network, if there are several."""

    @property
    def routed(self) -> RoutedGraph | None:
        """The routed graph inside; None in a network without learned routes."""
        return next((part for part in self.children() if isinstance(part, RoutedGraph)), None)

    @property
    def topology(self) -> Topology | None:
        """The graph that is routed; None in a network without learned routes."""
        return None if self.routed is None else self.routed.topology

    @property
    def shared(self) -> dict[str, nn.Parameter]:
        """The parameters that networks for the same tasks can share, by the keyword of the constructor."""
        return {}

    def become_actor(self) -> None:
        """Makes this the network of an actor, next to critics of the same kind.

        Its outputs are means, followed by as many logarithms of standard deviations. Most networks change nothing;
        BRC's and ScaleMoE's stop the gradient of the :attr:`shared` parameters.
        """

    def reset_module(self, module: nn.Module) -> None:
        """Draws the parameters of a module of the routed graph anew, as the constructor does (:func:`dynroute.grow`).

        Args:
            module: The module.
        """
        reset_all("module", module)

    def constructor_arguments(self, **others: Any) -> dict[str, Any]:
        """The arguments that construct an equal network, for :func:`dynroute.save_pretrained`.

        Each is the attribute of the same name. `gate`, `protect` and `backend` are the current ones of the routed
        graph. A table that networks share is None.

        Args:
            others: Arguments that are not attributes of the network.
        """
        arguments: dict[str, Any] = dict.fromkeys(self.shared)
        if self.routed is not None:
            routed = self.routed
            arguments |= {"gate": routed.gate.unbound(), "protect": routed.protect, "backend": routed.backend}
        return kept_arguments(self, {**arguments, **others})

    def forward(
        self,
        state: Tensor,
        task: Tensor,
        *,
        path: Tensor | Route | None = None,
        temperature: float | Tensor = 1.0,
        sample: bool | None = None,
        generator: torch.Generator | None = None,
        return_route: bool = False,
        noise: Tensor | None = None,
        router_noise: RouterNoise | None = None,
    ) -> Tensor | tuple[Tensor, Route | None]:
        """Computes the output of every sample.

        Args:
            state: The state without the task, with shape ``[*, state_features]``.
            task: One-hots (floating or boolean) with shape ``[*, num_tasks]``, or task ids (integers) with shape
                ``[*]``.
            path: A recorded path to replay, or the route that holds it (Eq. 8).
            temperature: Divides the logits when a path is sampled; a number or a tensor with shape ``[*]`` (Eq. 13).
            sample: Whether a gate that can sample does so; default: in training mode.
            generator: The random generator for a path that is sampled.
            return_route: Whether to return the route beside the output.
            noise: Gumbel noise that was drawn before, for functions that are compiled or replayed.
            router_noise: The noise of a router, drawn before by :meth:`~dynroute.Router.draw_noise`, for the same
                purpose.

        Returns:
            The output with shape ``[*, out_features]``, or the output and the :class:`~dynroute.Route`. Networks
            without learned routes ignore the routing keywords and return None for the route.
        """
        output, route = self.compute(
            state,
            self._one_hot(state, task),
            path=path,
            temperature=temperature,
            sample=sample,
            generator=generator,
            noise=noise,
            router_noise=router_noise,
        )
        return (output, route) if return_route else output

    @abstractmethod
    def compute(self, state: Tensor, task: Tensor, **routing: Unpack[Routing]) -> tuple[Tensor, Route | None]:
        """Computes the output and the route from a state and the one-hot of its task, both of the same type."""

    def describe(self) -> str:
        """Describes the network, its size and its routing in one line."""
        variant = f" ({self.variant})" if self.variant else ""
        line = f"{type(self).__name__}{variant}: {sum(p.numel() for p in self.parameters()):,} parameters"
        routed = self.routed
        if routed is None:
            return f"{line}, no learned routes"
        used = f"{routed.topology.num_nodes} nodes, {routed.topology.num_edges} routed edges"
        return f"{line}, {used}, {routed.gate}" + (f", {routed.protect}" if routed.protect != "none" else "")

    def extra_repr(self) -> str:
        return f"{self.describe()}, {self.state_features} + {self.num_tasks} tasks -> {self.out_features}"

    def _one_hot(self, state: Tensor, task: Tensor) -> Tensor:
        _check_state(state, self.state_features, self.num_tasks)
        # A user may have converted only some parts.
        if all(part.dtype != state.dtype for part in self.parameters()):
            check_input("state", state, next(self.parameters(), state))
        one_hot = task_one_hot(task, self.num_tasks)
        if one_hot.shape[:-1] != state.shape[:-1]:
            raise ValueError(
                f"`task` must name one task for each state, got task {tuple(task.shape)} and state "
                f"{tuple(state.shape)}; give ids with shape {tuple(state.shape[:-1])} or one-hots with shape "
                f"{(*state.shape[:-1], self.num_tasks)}."
            )
        return one_hot.to(state.dtype)


def _check_state(state: Tensor, features: int, num_tasks: int) -> None:
    check_floating("state", state)
    if state.shape[-1:] == (features,):
        return
    hint = "."
    if state.shape[-1:] == (features + num_tasks,):
        hint = f"; it still carries the one-hot of the task: pass `state[..., :{features}]` and the task by itself."
    raise ValueError(f"`state` must have shape (*, {features}), got {tuple(state.shape)}{hint}")


def gate_named(gate: Gate | str) -> Gate:
    """Makes the gate of a name; copies a gate.

    Names are "soft", "hard", and "top-2", "sample-2" and "balanced-2" with any number of sources, of which the last is
    a :class:`~dynroute.BalancedTopK`. The copy keeps networks made from the same arguments, such as actor and critics,
    from sharing its state.

    Example:
        >>> gate_named("sample-2")
        SampleK(2)
    """
    if isinstance(gate, Gate):
        return copy.deepcopy(gate)
    kind, _, k = gate.partition("-") if isinstance(gate, str) else ("", "", "")
    if kind in CHOOSING and k.isdecimal() and int(k) < 2:
        raise ValueError(f'`gate` must read at least 2 sources to learn from their weights, got {gate!r}; try "hard".')
    if kind in CHOOSING and k.isdecimal():
        return CHOOSING[kind](int(k))
    if kind in ("soft", "hard") and gate == kind:
        return Soft() if kind == "soft" else Hard()
    number = re.findall(r"\d+$", gate) if isinstance(gate, str) else []
    names = ["soft", "hard", *(f"{kind}-{(number or ['2'])[0]}" for kind in CHOOSING)]
    near = difflib.get_close_matches(str(gate), names, n=1)
    hint = f'; did you mean "{near[0]}"?' if near else "."
    raise ValueError(
        '`gate` must be a Gate or one of "soft", "hard", "top-2", "sample-2", "balanced-2", ..., got '
        f"{shown(gate)}{hint}"
    )


def set_output_range(layer: nn.Module, bound: float | None) -> None:
    """Draws the parameters of the last linear layer of a module from U(-bound, bound), unless it is None."""
    if bound is None:
        return
    check_number("output_init", bound, at_least=0)
    last = [part for part in layer.modules() if isinstance(part, LINEAR)][-1]
    for parameter in (last.weight, last.bias):
        _draw_uniform(last, parameter, bound)


def set_hidden_init(net: nn.Module, rule: str, *, outputs: Sequence[nn.Module]) -> None:
    """Initializes the linear layers of a network by a rule, except in its output modules.

    Args:
        net: The network.
        rule: "torch" changes nothing; "released" is the released code of D2R and Soft Modularization: weights from
            U(-1/sqrt(n), 1/sqrt(n)), where n is the width of a layer's output, and biases of 0.1.
        outputs: The output modules of the network.
    """
    check_choice("hidden_init", rule, ("torch", "released"))
    if rule == "torch":
        return
    excluded = {layer for module in outputs for layer in module.modules()}
    for layer in net.modules():
        if isinstance(layer, LINEAR) and layer not in excluded:
            _draw_uniform(layer, layer.weight, 1 / math.sqrt(layer.out_features))
            nn.init.constant_(layer.bias, 0.1)


@torch.no_grad()
def _draw_uniform(layer: nn.Module, parameter: Tensor, bound: float) -> None:
    """Draws a parameter from U(-bound, bound); the sets of a composed layer stay equal, as they are made."""
    if isinstance(layer, CompositionalLinear):
        parameter.copy_(nn.init.uniform_(torch.empty_like(parameter[0]), -bound, bound))
    else:
        nn.init.uniform_(parameter, -bound, bound)


def check_table(name: str, table: object, shape: tuple[int, int], columns: str, layers: nn.Module) -> None:
    """Raises an error unless a table that networks share is a parameter of a shape, and of the type of the layers."""
    if not isinstance(table, nn.Parameter):
        raise TypeError(f"`{name}` must be a parameter of another network, got {type(table).__name__}.")
    if table.shape != shape:
        raise ValueError(
            f"`{name}` must have shape {shape}, a row for each task, got {tuple(table.shape)}; share the table of a "
            f"network with as many tasks and {columns}."
        )
    if table.dtype != (dtype := next(layers.parameters()).dtype):
        raise TypeError(
            f"`{name}` must have the type of the parameters {dtype}, got {table.dtype}; pass `dtype` to both networks."
        )
