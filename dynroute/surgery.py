"""Adding routing to existing models: turning a dense part into a mixture, and replacing parts of a model."""

import copy
import fnmatch
from collections.abc import Callable

from torch import nn

from .arguments import check_count, shown
from .gates import Gate, TopK
from .levels import ModelRouting
from .levels.graph import check_input_kept

__all__ = ["Where", "swap", "upcycle"]

Where = str | type[nn.Module] | tuple[type[nn.Module], ...] | Callable[[str, nn.Module], bool]
"""A pattern for names, a class or classes, or a predicate of name and module."""


def upcycle(
    dense: nn.Module,
    num_experts: int,
    gate: Gate | None = None,
    router: nn.Module | None = None,
    *,
    context_features: int | None = None,
    protect: str = "none",
    backend: str = "auto",
) -> ModelRouting:
    """Makes a mixture of copies of a module that computes the same as the module (sparse upcycling).

    The copies are equal at first and the weights of a sample sum to 1, so the router does not matter yet. The experts
    diverge as each learns from the samples that choose it. The module itself is not changed (Komatsuzaki et al., 2023).

    Args:
        dense: The module, for instance the feed-forward part of a transformer block.
        num_experts: The number of copies.
        gate: Turns logits into a route, with weights that sum to 1; ``TopK(2)`` if None.
        router: Turns a context into logits; a :class:`LinearRouter` if None.
        context_features: The width of the context; default: the input's width, read from the linear layers.
        protect: As for :class:`ModelRouting`.
        backend: As for :class:`ModelRouting`.

    Example:
        >>> dense = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8))
        >>> mixture = dynroute.upcycle(dense, 4)
        >>> x = torch.randn(5, 8)
        >>> torch.allclose(mixture(x), dense(x), atol=1e-6)
        True
    """
    if not isinstance(dense, nn.Module):
        raise TypeError(f"`dense` must be a module, got {shown(dense)}.")
    check_count("num_experts", num_experts, at_least=1)
    check_input_kept("dense", dense)
    gate = TopK(2) if gate is None else gate
    if isinstance(gate, Gate) and not gate.sums_to_one:
        raise ValueError(
            f"`gate` must give weights that sum to 1 to compute what the dense module does, got {gate}; "
            "use TopK(2), Soft(), SampleK(2) or BalancedTopK(2), without a capacity."
        )
    experts = [copy.deepcopy(dense) for _ in range(num_experts)]
    mixture = ModelRouting(experts, gate, router, context_features=context_features, protect=protect, backend=backend)
    return mixture.train(dense.training)


def swap(model: nn.Module, where: Where, make: Callable[[nn.Module], nn.Module]) -> dict[str, nn.Module]:
    """Replaces parts of a model in place, for instance by routed layers.

    Parts are replaced only after all new parts were made. Nothing inside a replaced part is replaced separately. A part
    with several names is replaced under all of them by one new part. New parts keep the mode of the old ones, training
    or evaluation.

    Args:
        model: The model.
        where: The parts to replace: a pattern for their names (``"layers.*.mlp"``, as in ``fnmatch``, where ``*``
            crosses dots), a class or a tuple of classes, or a function of name and module that returns a boolean.
        make: Takes an old part and returns the new one.

    Returns:
        The old parts by their names.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8)))
        >>> old = dynroute.swap(model, "1", lambda dense: dynroute.upcycle(dense, num_experts=4))
        >>> list(old), type(model[1]).__name__
        (['1'], 'ModelRouting')
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"`model` must be a module, got {shown(model)}.")
    if not callable(make):
        raise TypeError(f"`make` must be a function of the old module, got {shown(make)}.")
    matches = _predicate(where)

    chosen = set(_outermost(model, matches).values())
    old = _outermost(model, lambda _, module: module in chosen)  # under their other names too
    if not old:
        if matches("", model):
            raise ValueError(
                f"`where` must match a part of the model, but {shown(where)} matches the model alone, which cannot be "
                "replaced in place; call `make(model)` instead."
            )
        names = [name for name, _ in model.named_modules() if name]
        parts = f"{', '.join(names[:8])}{', ...' if len(names) > 8 else ''}" or "no parts"
        raise ValueError(
            f"`where` must match a part of the model, but {shown(where)} matches none of {parts}; print(model) shows "
            "them all."
        )

    new: dict[nn.Module, nn.Module] = {}
    for name, module in old.items():
        if module not in new:
            new[module] = _replacement(name, module, make)
    for name, module in old.items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, new[module])
    return old


def _predicate(where: Where) -> Callable[[str, nn.Module], bool]:
    if isinstance(where, str):
        return lambda name, module: bool(name) and fnmatch.fnmatchcase(name, where)
    classes = where if isinstance(where, tuple) else (where,)
    if classes and all(isinstance(kind, type) and issubclass(kind, nn.Module) for kind in classes):
        return lambda name, module: isinstance(module, classes)  # type: ignore[arg-type]  # all are classes
    if callable(where) and not isinstance(where, type | nn.Module):
        return lambda name, module: bool(where(name, module))
    raise TypeError(
        f"`where` must be a pattern for names, a class of modules or a function of name and module, got {shown(where)}."
    )


def _outermost(model: nn.Module, matches: Callable[[str, nn.Module], bool]) -> dict[str, nn.Module]:
    """The parts of a model that match, apart from those inside others, by all names that match."""
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if name and not inside and matches(name, module):
            found[name] = module
    return found


def _replacement(name: str, module: nn.Module, make: Callable[[nn.Module], nn.Module]) -> nn.Module:
    new = make(module)
    if not isinstance(new, nn.Module):
        raise TypeError(f"`make` must return a module, but for {name!r} it returned {shown(new)}.")
    return new.train(module.training)
