"""Resetting: drawing the parameters of modules anew by their own methods."""

from collections.abc import Callable

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
    done: set[nn.Module] = set()
    entered: list[nn.Module] = []
    resets: list[Callable[[], object]] = []
    queue = list(module.named_children())
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
    for reset in resets:
        reset()
    for part in reversed(entered):  # inner ones first
        if isinstance(part, _WITH_PARTS):
            part._reset_parameters()


def reset_all(module: nn.Module) -> None:
    """Resets a module as :func:`reset_parts` resets its parts."""
    reset_parts(nn.ModuleDict({"module": module}))


def _own_parameters(module: nn.Module) -> list[str]:
    """The names of the parameters that a module holds itself, or in a list of parameters, and that learn."""
    holders = [
        ("", module),
        *((f"{name}.", part) for name, part in module.named_children() if isinstance(part, _OF_PARAMETERS)),
    ]
    held = [(start + name, p) for start, holder in holders for name, p in holder.named_parameters(recurse=False)]
    return [name for name, parameter in held if parameter.requires_grad]
