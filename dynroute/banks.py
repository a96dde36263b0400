"""Banks: equal linear modules in one piece of memory, so that a layer of them is one product."""

from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from .arguments import Makes, check_counts, check_dtype, check_flag, make_activation
from .resetting import reset_parts

__all__ = ["LinearBank", "are_adjacent", "keep_adjacent", "lay_adjacent", "own_memory", "stacked"]


class LinearBank(nn.ModuleList):
    r"""Equal linear modules whose parameters share one piece of memory.

    A bank is a list of ordinary modules, ``nn.Linear`` or ``nn.Sequential(nn.Linear, activation)``, for any routed
    layer. Its ``state_dict`` has the keys of separate modules. The parameters lie one behind the other, so the
    fused backend multiplies with all of them without a copy; it stacks separate modules at every call. A bank in a
    graph stays in one piece if the graph, or a model around it, is moved or converted as a whole. Saving the
    ``state_dict`` of a single member writes the memory of the whole bank.

    Args:
        num_modules: The number of modules.
        in_features: The width of their input.
        out_features: The width of their output.
        activation: Makes the activation behind each module, if any.
        bias: Whether the modules have a bias.
        device: The device of the parameters.
        dtype: The type of the parameters.

    Example:
        >>> layers = [LinearBank(4, 39, 128, nn.ReLU), LinearBank(4, 128, 128, nn.ReLU)]
        >>> net = LayerRouting(layers, Soft(), LinearRouter(39, Topology.layered([4, 4])))
        >>> net(torch.zeros(7, 39)).shape
        torch.Size([7, 128])
    """

    def __init__(
        self,
        num_modules: int,
        in_features: int,
        out_features: int,
        activation: Callable[[], nn.Module] | None = None,
        *,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_counts(num_modules=num_modules, in_features=in_features, out_features=out_features)
        check_flag("bias", bias)
        check_dtype(dtype)
        linear = [
            nn.Linear(in_features, out_features, bias=bias, device=device, dtype=dtype) for _ in range(num_modules)
        ]
        super().__init__(
            linear if activation is None else [nn.Sequential(layer, make_activation(activation)) for layer in linear]
        )
        lay_adjacent([layer.weight for layer in linear])
        if bias:
            lay_adjacent([layer.bias for layer in linear])

    def constructor_arguments(self) -> dict[str, Any]:
        """The arguments that construct an equal bank."""
        first = self[0]
        linear, activation = first if isinstance(first, nn.Sequential) else (first, None)
        return {
            "num_modules": len(self),
            "in_features": linear.in_features,
            "out_features": linear.out_features,
            "activation": None if activation is None else Makes(activation),
            "bias": linear.bias is not None,
        }

    def reset_parameters(self) -> None:
        """Resets all parameters as ``nn.Linear`` does."""
        reset_parts(self)

    def __getitem__(self, index: int | slice) -> nn.Module:  # type: ignore[override]  # a slice is a plain list
        return nn.ModuleList(list(self)[index]) if isinstance(index, slice) else super().__getitem__(index)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        adjacent = are_adjacent(list(self))
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if adjacent:
            keep_adjacent(list(self))
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        keep_adjacent(list(self))


def stacked(tensors: Sequence[Tensor]) -> Tensor:
    """Stacks equal tensors along a new first dimension: a view if they lie side by side, else a copy.

    A gradient of the view would reach the first tensor alone, so autograd must not record it.
    """
    first = tensors[0]
    if torch.compiler.is_compiling() or not _adjacent(tensors):
        return torch.stack(list(tensors))
    return first.as_strided((len(tensors), *first.shape), (first.numel(), *first.stride()), first.storage_offset())


def lay_adjacent(parameters: Sequence[Tensor]) -> None:
    """Moves equal parameters into one piece of memory; the parameter objects stay the same."""
    with torch.no_grad():
        for parameter, row in zip(parameters, torch.stack(list(parameters)).unbind(), strict=True):
            parameter.data = row


def own_memory(module: nn.Module) -> None:
    """Copies the parameters of a module that are views, since a part of a bank keeps the memory of the whole bank."""
    for parameter in module.parameters():
        if parameter.untyped_storage().nbytes() > parameter.numel() * parameter.element_size():
            parameter.data = parameter.data.clone()


def are_adjacent(modules: Sequence[nn.Module]) -> bool:
    """Whether the parameters of several equal modules lie side by side."""
    return len(modules) > 1 and bool(_across(modules)) and all(map(_adjacent, _across(modules)))


def keep_adjacent(modules: Sequence[nn.Module]) -> None:
    """Restores the shared memory of equal modules after they were moved, converted or copied.

    Parameters that have come to differ, or that processes share, stay where they are.
    """
    for parameters in _across(modules):
        kinds = {(parameter.shape, parameter.dtype, parameter.device) for parameter in parameters}
        if len(kinds) == 1 and not _adjacent(parameters) and not any(map(_is_shared, parameters)):
            lay_adjacent(parameters)


def _is_shared(parameter: Tensor) -> bool:
    return bool(parameter.is_shared())  # type: ignore[no-untyped-call]


def _across(modules: Sequence[nn.Module]) -> list[list[nn.Parameter]]:
    """Groups each parameter over all modules; empty if the modules differ."""
    named = [dict(module.named_parameters()) for module in modules]
    if any(parameters.keys() != named[0].keys() for parameters in named):
        return []
    return [[parameters[name] for parameters in named] for name in named[0]]


def _adjacent(tensors: Sequence[Tensor]) -> bool:
    """Whether tensors are contiguous, equal in shape and type, and consecutive in one storage."""
    if any(map(nn.parameter.is_lazy, tensors)):
        return False
    first = tensors[0]
    size, storage = first.numel(), first.untyped_storage()._cdata
    return all(
        tensor.shape == first.shape
        and tensor.dtype == first.dtype
        and tensor.is_contiguous()
        and tensor.untyped_storage()._cdata == storage
        and tensor.storage_offset() == first.storage_offset() + i * size
        for i, tensor in enumerate(tensors)
    )
