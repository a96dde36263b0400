"""Resetting: drawing the parameters of modules anew by their own methods."""

from collections.abc import Callable, Iterable, Sequence

from torch import nn

__all__ = ["reset_all", "reset_parts"]

_WITH_PARTS = (nn.MultiheadAttention, nn.Transformer)
"""Modules of torch that change the initialization of their parts."""

_OF_PARAMETERS = (nn.ParameterList, nn.ParameterDict)
"""Modules of torch that hold parameters for others."""


def reset_parts(module: nn.Module) -> None:
    """Calls ``reset_parameters`` of all modules inside a module, once each.

    Some modules of torch, such as ``nn.MultiheadAttention``, have ``_reset_parameters``, which follows their parts. A
    module that has neither, but parameters of its own, is an error, before anything is reset.
    """
    resets, entered = _find(module.named_children())
    for reset in resets:
        reset()
    _reset_wholes(entered)


def reset_all(name: str, module: nn.Module) -> None:
    """Resets a module and all its parts, also those that the ``reset_parameters`` of another part leaves as they are.

    Args:
        name: The name of the module, for the error of :func:`reset_parts`.
        module: The module.
    """
    _find([(name, module)])
    parts = list(module.modules())
    for part in parts:
        if callable(reset := getattr(part, "reset_parameters", None)):
            reset()
    _reset_wholes(parts)


def _find(modules: Iterable[tuple[str, nn.Module]]) -> tuple[list[Callable[[], object]], list[nn.Module]]:
    """The outermost ``reset_parameters`` inside of named modules, and the modules around these."""
    done: set[nn.Module] = set()
    entered: list[nn.Module] = []
    resets: list[Callable[[], object]] = []
    queue = list(modules)
    while queue:
        name, part = queue.pop(0)
        if part in done:
            continue
        done.add(part)
        reset = getattr(part, "reset_parameters", None)
        if callable(reset):
            resets.append(reset)
            continue
        own = [] if isinstance(part, (*_WITH_PARTS, *_OF_PARAMETERS)) else _own_parameters(part)
        if own:
            raise TypeError(
                f"`{name}` must have a method `reset_parameters` that draws its parameters ({', '.join(own)}), but its "
                f"class {type(part).__name__} has none; give it one."
            )
        queue += [(f"{name}.{child}", inner) for child, inner in part.named_children()]
        entered.append(part)
    return resets, entered


def _reset_wholes(modules: Sequence[nn.Module]) -> None:
    """Calls ``_reset_parameters`` of those of torch's modules that have it, inner ones first."""
    for module in reversed(modules):
        if isinstance(module, _WITH_PARTS):
            module._reset_parameters()


def _own_parameters(module: nn.Module) -> list[str]:
    """The names of the parameters that a module holds itself, or in a list of parameters, and that learn."""
    holders = [
        ("", module),
        *((f"{name}.", part) for name, part in module.named_children() if isinstance(part, _OF_PARAMETERS)),
    ]
    held = [(start + name, p) for start, holder in holders for name, p in holder.named_parameters(recurse=False)]
    return [name for name, parameter in held if parameter.requires_grad]
