"""Checks of tensor values, and of the surroundings of a call."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack, is_in_torch_dispatch_mode

__all__ = [
    "backward_pass",
    "checks_values",
    "full_precision",
    "hides_values",
    "hiding_mode",
    "hooks_everywhere",
    "in_forward_mode",
    "is_autocast",
    "is_hooked",
    "is_own",
    "is_traced",
    "records_gradients",
    "refuse_where",
    "set_checks",
    "under_transform",
]

_enabled: bool | None = None


def set_checks(enabled: bool | None) -> None:
    """Sets where the values of tensors are checked; shapes are always checked.

    Reading a value of a CUDA tensor stalls its stream, so by default only CPU tensors are checked. Nothing is read
    while a graph is compiled, exported, traced or captured.

    Args:
        enabled: True checks on every device, False nowhere, None (the default) on the CPU only.

    Example:
        >>> dynroute.set_checks(True)
        >>> dynroute.set_checks(None)
    """
    if enabled is not None and not isinstance(enabled, bool):
        raise TypeError(f"`enabled` must be True, False or None, got {enabled!r}.")
    global _enabled
    _enabled = enabled


def refuse_where(tensor: Tensor, bad: Callable[[Tensor], Tensor], explain: Callable[[tuple[int, ...]], str]) -> None:
    """Raises a ValueError if a tensor has bad values, where values may be read.

    Args:
        tensor: The tensor to check.
        bad: Returns a boolean tensor that is True where a value is bad.
        explain: Returns the message, given the index of the first bad value.
    """
    if not checks_values(tensor):
        return
    marked = bad(tensor.detach())
    try:
        refused = bool(marked.any())
    except RuntimeError:  # vmap and fake tensors hide their values
        return
    if refused:
        raise ValueError(explain(tuple(int(i) for i in marked.nonzero()[0])))


def under_transform() -> bool:
    """Whether a transform such as vmap is active, which hides values and may hide a dimension."""
    return bool(torch._C._are_functorch_transforms_active())


def records_gradients() -> bool:
    """Whether what is computed may be differentiated, in reverse or forward mode."""
    return torch.is_grad_enabled() or in_forward_mode()


def is_hooked(module: nn.Module) -> bool:
    """Whether a call of the module does more than its forward."""
    attributes = module.__dict__
    return bool(
        attributes["_forward_hooks"]
        or attributes["_forward_pre_hooks"]
        or attributes["_backward_hooks"]
        or attributes["_backward_pre_hooks"]
        or "forward" in attributes
    )


def hooks_everywhere() -> bool:
    """Whether global hooks are registered, which a call of any module runs."""
    module = torch.nn.modules.module
    return bool(
        module._global_forward_hooks
        or module._global_forward_pre_hooks
        or module._global_backward_hooks
        or module._global_backward_pre_hooks
    )


def is_own(method: Callable[..., object]) -> bool:
    """Whether a method was written outside of dynroute, so that what it returns is checked; False while compiling."""
    if torch.compiler.is_compiling() or is_traced():
        return False
    return (method.__module__ or "").partition(".")[0] != "dynroute"  # None where code is executed from text


def is_traced() -> bool:
    """Whether ``torch.jit.trace`` records, which turns every value that is read into a constant."""
    return torch._C._get_tracing_state() is not None


def backward_pass() -> int:
    """The number of the backward pass that is running, as while activation checkpointing recomputes; -1 for none."""
    return torch._C._current_graph_task_id()


def in_forward_mode() -> bool:
    """Whether a forward-mode derivative is being computed."""
    return torch.autograd.forward_ad._current_level >= 0


def is_autocast(device: str) -> bool:
    """Whether autocast is enabled for a type of device."""
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def full_precision(like: Tensor) -> AbstractContextManager[object]:
    """Suspends autocast on the device of a tensor."""
    device = like.device.type
    return torch.autocast(device, enabled=False) if is_autocast(device) else nullcontext()


def hiding_mode() -> str | None:
    """The name of a dispatch mode of torch that may hide values, as fake tensors do; None if none is active."""
    if not is_in_torch_dispatch_mode():
        return None
    modes = [type(mode) for mode in _get_current_dispatch_mode_stack()]
    return next((mode.__name__ for mode in modes if mode.__module__ != "torch.utils.flop_counter"), None)


def hides_values(tensor: Tensor) -> bool:
    """Whether code may not depend on the values of a tensor: while compiling or tracing, and off the CPU."""
    hidden = torch.compiler.is_compiling() or under_transform() or hiding_mode() is not None
    return hidden or tensor.device.type != "cpu" or is_traced()


def checks_values(tensor: Tensor) -> bool:
    """Whether the values of a tensor are checked, as :func:`set_checks` says."""
    if _enabled is False or torch.compiler.is_compiling() or is_traced():
        return False
    if tensor.device.type == "cpu":
        return True
    return _enabled is True and not (tensor.is_cuda and torch.cuda.is_current_stream_capturing())
