"""Networks that grow during training: a module is added if a task stalls while others learn."""

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from torch import nn

from dynroute import Resized, grow, networks, open_nodes
from dynroute.arguments import check_count, shown
from dynroute.growth import CLOSED, find_graph

from .sac import MultiTaskSAC

__all__ = ["GrowOnDemand", "grow_networks", "measure_tasks", "network_size", "open_newest", "size_keyword"]

Measure = Callable[[MultiTaskSAC], Sequence[float | None]]


class GrowOnDemand(BaseCallback):
    """Adds a module to actor and critics if a task stalls while others learn.

    Every `every` steps it measures the tasks. A task has stalled if it gained less than `gain` over the last `patience`
    measurements and is not solved. If a task has stalled and another one gained at least `gain`, all networks of the
    policy grow by a module, with their optimizers, targets and stored paths. This does not change the evaluation. The
    module is opened over the next `opening` steps (:func:`dynroute.open_nodes`), and measurements start again.

    The state of the callback is the attribute `growth_state` of the model and part of checkpoints, so a run with the
    same callback resumes exactly. The network must be "d2r", "d2r-model" or "moe", or of the same class.

    A training loop of your own calls :meth:`open` before each step and :meth:`look` with what it measured, after
    ``init_callback(model)``; cloning does so in updates (``dynroute imitate --grow-to``).

    Args:
        every: The number of environment steps between measurements.
        max_modules: The largest number of modules, without the output.
        patience: The number of measurements over which a gain counts.
        gain: The least gain that counts as learning, in the unit of `measure`.
        solved: The value from which a task is solved.
        opening: The number of environment steps over which a new module is opened; default: `every`.
        measure: Returns a number for each task, higher being better, or None if there is none yet; default: the success
            rate of its last episodes or, if environments report none, their mean return.
        verbose: Whether to print a line when networks grow.

    Example:
        >>> sizes = {"num_modules": 3, "width": 8, "trunk_sizes": (8,), "router_sizes": (8,)}
        >>> model = MultiTaskSAC("D2RPolicy", DummyVecEnv(point_tasks()), policy_kwargs={"network_kwargs": sizes})
        >>> stalls = iter([[0, 0, 0, 0], [0, 0.5, 0.5, 0.5]])  # task 0 stays where it is, in this example
        >>> growth = GrowOnDemand(20, max_modules=5, patience=1, measure=lambda model: next(stalls))
        >>> model = model.learn(48, callback=growth)
        >>> model.actor.net.topology.num_nodes, model.policy_kwargs["network_kwargs"]["num_modules"]
        (5, 4)
    """

    model: MultiTaskSAC

    def __init__(
        self,
        every: int,
        max_modules: int,
        *,
        patience: int = 5,
        gain: float = 0.05,
        solved: float = 0.9,
        opening: int | None = None,
        measure: Measure | None = None,
        verbose: int = 0,
    ) -> None:
        super().__init__(verbose)
        check_count("every", every, at_least=1)
        check_count("max_modules", max_modules, at_least=1)
        check_count("patience", patience, at_least=1)
        if opening is not None:
            check_count("opening", opening, at_least=1)
        for name, number in (("gain", gain), ("solved", solved)):
            if isinstance(number, bool) or not isinstance(number, (int, float)) or not number > 0:
                raise ValueError(f"`{name}` must be a positive number, got {shown(number)}.")
        if math.isinf(gain):
            raise ValueError(f"`gain` must be finite, got {gain}: no task would ever learn.")
        if measure is not None and not callable(measure):
            raise TypeError(f"`measure` must be a function that gives a number for each task, got {shown(measure)}.")
        self.every, self.max_modules = every, max_modules
        self.patience, self.gain, self.solved = patience, gain, solved
        self.opening = every if opening is None else opening
        self.measure: Measure = measure_tasks if measure is None else measure

    def _init_callback(self) -> None:
        size_keyword(self.model)
        if getattr(self.model, "growth_state", None) is None:
            steps = self.model.num_timesteps
            self.model.growth_state = {"measured_at": steps, "measured": [], "grown_at": [], "nodes": [], "raised": 0.0}

    def _on_training_start(self) -> None:
        state, steps = self._state, self.model.num_timesteps  # the count of steps may have been reset
        state["measured_at"] = min(state["measured_at"], steps)
        if state["nodes"]:  # continue to open new modules
            opened_for = round(self.opening * state["raised"] / CLOSED)
            state["grown_at"] = [*state["grown_at"][:-1], min(state["grown_at"][-1], steps - opened_for)]

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        self.open(self.model.num_timesteps)  # now, since the next learn() may reset the count of steps

    def _on_rollout_start(self) -> None:
        steps = self.model.num_timesteps
        self.open(steps)
        if steps - self._state["measured_at"] >= self.every:
            self.look(steps, self.measure(self.model), name="measure")

    def look(self, step: int, values: Sequence[float | None], *, name: str = "values") -> Resized | None:
        """Takes a measurement of each task, and grows the networks if a task has stalled while another one learned.

        Args:
            step: The number of steps, or of whatever training is counted in.
            values: A number for each task, higher being better, or None if there is none yet.
            name: The name of the values in an error.

        Returns:
            The changes of the actor if the networks have grown.
        """
        state, numbers = self._state, self._numbers(name, values)
        state["measured_at"] = step
        state["measured"] = [*state["measured"], numbers][-self.patience - 1 :]
        if state["nodes"] or not self._is_stalled(state["measured"]):
            return None
        if find_graph("network", self.model.actor.net).topology.num_nodes - 1 >= self.max_modules:
            return None
        grown = grow_networks(self.model)
        state.update(measured=[numbers], grown_at=[*state["grown_at"], step], nodes=list(grown.added), raised=0.0)
        if self.verbose:
            print(f"{grown.num_modules} modules at {step} steps")
        return grown

    @property
    def _state(self) -> dict[str, Any]:
        if getattr(self, "model", None) is None or self.model.growth_state is None:
            raise ValueError("`model` is not known yet: call init_callback(model), as learn(callback=...) does.")
        return self.model.growth_state

    def _numbers(self, name: str, values: Any) -> list[float | None]:
        """Measurements as plain numbers; raises an error if there is not one for each task."""
        num_tasks = self.model.policy.task_space.num_tasks
        try:
            numbers = [None if value is None else float(value) for value in values]
        except (TypeError, ValueError):
            numbers = []
        if len(numbers) != num_tasks:
            raise ValueError(
                f"`{name}` must give {num_tasks} numbers, one for each task or None where there is none yet, "
                f"got {shown(values)}."
            )
        return numbers

    def open(self, step: int) -> None:
        """Raises the logits of a new module to the level that is due at a step."""
        state = self._state
        if not state["nodes"]:
            return
        due = max(CLOSED * min((step - state["grown_at"][-1]) / self.opening, 1.0), state["raised"])
        open_newest(_networks(self.model), len(state["nodes"]), by=due - state["raised"])
        state["raised"] = due
        if due == CLOSED:
            state["nodes"] = []

    def _is_stalled(self, measured: Sequence[Sequence[float | None]]) -> bool:
        """Whether some task has stalled while another one learned."""
        if len(measured) <= self.patience:
            return False
        first, last = measured[0], measured[-1]
        pairs = [(a, b) for a, b in zip(first, last, strict=True) if a is not None and b is not None]
        stalled = any(b - a < self.gain and b < self.solved for a, b in pairs)
        return stalled and any(b - a >= self.gain for a, b in pairs)


def measure_tasks(model: MultiTaskSAC) -> list[float | None]:
    """Computes the success rate of each task's last episodes, or their mean return if environments report no success.

    Example:
        >>> from dynroute_sb3.growth import measure_tasks
        >>> measure_tasks(MultiTaskSAC("MlpPolicy", DummyVecEnv(point_tasks())))
        [None, None, None, None]
    """
    kept = model.report.successes if any(model.report.successes) else model.report.returns
    return [float(np.mean(values)) if values else None for values in kept]


def grow_networks(model: MultiTaskSAC, count: int = 1) -> Resized:
    """Adds modules to the networks of a model, between updates.

    Actor, critics, targets and the rollout actor get new nodes that they do not use yet. Optimizers keep their state,
    stored paths are lifted to the larger graph, and the keywords of the policy get the new size, so that saved models
    can be loaded.

    Args:
        model: The model.
        count: The number of modules.

    Returns:
        The changes of the actor.

    Example:
        >>> from dynroute_sb3.growth import grow_networks
        >>> sizes = {"num_modules": 3, "width": 8, "trunk_sizes": (8,), "router_sizes": (8,)}
        >>> model = MultiTaskSAC("D2RPolicy", DummyVecEnv(point_tasks()), policy_kwargs={"network_kwargs": sizes})
        >>> grow_networks(model, 2).num_modules
        5
    """
    keyword, policy = size_keyword(model), model.policy
    grown, modules = _grow(model.actor.net, count)
    grown.carry(policy.actor.optimizer)
    if model.rollout_actor is not None:
        grow(model.rollout_actor.net, copy.deepcopy(modules))
        model.rollout_actor.requires_grad_(False)
    for net, target in zip(policy.critic.nets, policy.critic_target.nets, strict=True):
        changed, modules = _grow(net, count)
        changed.carry(policy.critic.optimizer)
        grow(target, copy.deepcopy(modules))
    policy.critic_target.requires_grad_(False)

    size, critic_size = {keyword: grown.num_modules}, {keyword: changed.num_modules}
    model.policy_kwargs["network_kwargs"] = {**(model.policy_kwargs.get("network_kwargs") or {}), **size}
    policy.network_kwargs.update(size)
    if keyword in policy.critic_kwargs:  # critics have another size
        model.policy_kwargs["critic_kwargs"] = {**model.policy_kwargs["critic_kwargs"], **critic_size}
        policy.critic_kwargs.update(critic_size)
    if model.replay_buffer is not None:
        model.replay_buffer.lift_paths(grown.after)
    model._graphs = None  # captured graphs hold the old networks
    return grown


def open_newest(nets: Iterable[nn.Module], count: int, *, by: float) -> None:
    """Raises the logits of the newest modules of networks by a number, see :func:`dynroute.open_nodes`.

    Example:
        >>> from dynroute_sb3.growth import open_newest
        >>> sizes = {"num_modules": 3, "width": 8, "trunk_sizes": (8,), "router_sizes": (8,)}
        >>> model = MultiTaskSAC("D2RPolicy", DummyVecEnv(point_tasks()), policy_kwargs={"network_kwargs": sizes})
        >>> grown = grow_networks(model)
        >>> open_newest([model.actor.net, *model.critic.nets], 1, by=20.0)
    """
    for net in nets:  # critics may have another number of nodes than their actor
        output = find_graph("network", net).topology.num_nodes - 1
        open_nodes(net, range(output - count, output), by=by)


def size_keyword(model: MultiTaskSAC) -> str:
    """Returns the keyword for the number of modules; raises an error if the model cannot grow.

    Example:
        >>> from dynroute_sb3.growth import size_keyword
        >>> size_keyword(MultiTaskSAC("MoEPolicy", DummyVecEnv(point_tasks())))
        'num_experts'
    """
    keyword, *others = (network_size(net)[0] for net in (model.actor.net, *model.critic.nets))
    if any(other != keyword for other in others):
        raise ValueError(
            f"`critic_kwargs` must let critics route at the level of their actor to grow with it, by {keyword}, got "
            f"critics with {', '.join(sorted({*others} - {keyword}))}."
        )
    if model.compile_networks:
        raise ValueError(
            "`compile_networks` must be False for networks that grow, got True: what is compiled is fixed."
        )
    if model.overlaps:
        raise ValueError("`model` must not learn while environments step to grow, got an OverlappedSAC.")
    return keyword


def network_size(net: nn.Module) -> tuple[str, int]:
    """Returns the keyword for the number of modules of a network and that number; raises an error if it cannot grow.

    Example:
        >>> from dynroute.networks import build
        >>> from dynroute_sb3.growth import network_size
        >>> network_size(build("d2r-model", 39, 10, 8, num_models=3))
        ('num_models', 3)
    """
    level = getattr(net, "level", "module")
    if isinstance(net, networks.MixtureOfExperts):
        return "num_experts", find_graph("net", net).topology.num_nodes - 1
    if isinstance(net, networks.DynamicDepthRouting) and level in ("module", "model"):
        return f"num_{level}s", find_graph("net", net).topology.num_nodes - 1
    raise ValueError(
        "`policy` must have networks that route at module or model level to grow, 'd2r', 'd2r-model' or 'moe', "
        f"got a {type(net).__name__}."
    )


def _networks(model: MultiTaskSAC) -> list[nn.Module]:
    lagging = [] if model.rollout_actor is None else [model.rollout_actor.net]
    return [model.actor.net, *lagging, *model.policy.critic.nets, *model.policy.critic_target.nets]


def _grow(net: nn.Module, count: int) -> tuple[Resized, list[nn.Module]]:
    """Grows a network, and returns its new modules too."""
    grown = grow(net, count)
    nodes = find_graph("network", net).nodes
    return grown, [nodes[node] for node in grown.added]
