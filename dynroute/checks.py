"""When the values of a tensor may be read, and the one way to refuse them."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

__all__ = ["hides_values", "refuse_where", "set_checks", "under_transform"]

_enabled: bool | None = None


def set_checks(enabled: bool | None) -> None:
    """Decides where the values of tensors are checked; shapes are checked always.

    Reading a value of a CUDA tensor stalls its stream, so that by default only CPU tensors are read.
    Nothing is read while a graph is compiled, exported or captured.

    Args:
        enabled: True checks on every device, False nowhere, None (the default) on the CPU alone.

    Example:
        >>> dynroute.set_checks(True)
        >>> dynroute.set_checks(None)
    """
    if enabled is not None and not isinstance(enabled, bool):
        raise TypeError(f"`enabled` must be True, False or None, got {enabled!r}.")
    global _enabled
    _enabled = enabled


def refuse_where(tensor: Tensor, bad: Callable[[Tensor], Tensor], explain: Callable[[tuple[int, ...]], str]) -> None:
    """Raises a ValueError if values of a tensor are bad and may be read here.

    Args:
        tensor: The tensor whose values matter.
        bad: Makes a boolean tensor of it, True where a value is bad; not called where nothing may be read.
        explain: Makes the message from the index of the first element that is True.
    """
    if not _readable(tensor):
        return
    found = bad(tensor.detach())
    try:
        some = bool(found.any())
    except RuntimeError:  # vmap and fake tensors hide their values: the check needs them, the maths does not
        return
    if some:
        raise ValueError(explain(tuple(int(i) for i in found.nonzero()[0])))


def under_transform() -> bool:
    """Whether a transform such as vmap is at work, under which values are hidden and tensors may lack a dimension."""
    return bool(torch._C._are_functorch_transforms_active())


def hides_values(tensor: Tensor) -> bool:
    """Whether nothing may depend on the values of a tensor: while compiling or tracing, and on other devices."""
    hidden = torch.compiler.is_compiling() or under_transform() or is_in_torch_dispatch_mode()
    return hidden or tensor.device.type != "cpu" or torch._C._get_tracing_state() is not None


def _readable(tensor: Tensor) -> bool:
    if _enabled is False or torch.compiler.is_compiling():
        return False
    if tensor.device.type == "cpu":
        return True
    return _enabled is True and not (tensor.is_cuda and torch.cuda.is_current_stream_capturing())
