"""A mode in which reading a value from the device is an error, and networks to run in it."""

import contextlib
from typing import Any, NoReturn, Self
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

SMALL: dict[str, dict[str, Any]] = {
    "mt-sac": {"hidden_sizes": (16, 16)},
    "paco": {"hidden_sizes": (16,), "num_sets": 2},
    "sm": {"trunk_sizes": (16,), "layer_sizes": (2, 2), "width": 8, "router_sizes": (16,)},
    "d2r": {"trunk_sizes": (16,), "num_modules": 3, "width": 8, "router_sizes": (16,)},
    "brc": {"width": 8, "blocks": 1},
    "scalemoe-output": {"num_experts": 3, "width": 8},
}


SIZES: dict[str, dict[str, Any]] = {
    **SMALL,
    "mh-sac": {"hidden_sizes": (16, 16)},
    "moe": {"num_experts": 3, "width": 8, "depth": 1, "router_sizes": (16,)},
    "hard": {"trunk_sizes": (16, 16), "layer_sizes": (2, 2), "width": 8},
    "sm-shallow": {"trunk_sizes": (16, 16), "width": 8, "router_sizes": (16,)},
    "care": {"num_encoders": 2} | {f"{part}_sizes": (16,) for part in ("encoder", "context", "gate", "hidden")},
    "d2r-released": SMALL["d2r"],
    "d2r-layer": {"trunk_sizes": (16, 16), "layer_sizes": (2, 2), "width": 8, "router_sizes": (16,)},
    "d2r-model": {"trunk_sizes": (16, 16), "num_models": 3, "model_depth": 1, "width": 8, "router_sizes": (16,)},
    "scalemoe-feature": {"num_experts": 3, "width": 8, "blocks": 1, "router_sizes": (16,)},
}
"""Sizes for every network; those of :data:`SMALL` are of each kind."""


class NoReading(TorchDispatchMode):
    """Refuses what would wait for a GPU: values that are read, and sizes that depend on them."""

    FORBIDDEN = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "bincount")
    FORBIDDEN += ("_unique2", "unique_dim", "unique_consecutive")
    INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put")
    METHODS = ("tolist", "numpy", "cpu", "tensor_split")
    """Methods that dispatch nothing on the CPU."""

    def __enter__(self) -> Self:
        self._patches = contextlib.ExitStack()
        for name in self.METHODS:
            self._patches.enter_context(mock.patch.object(Tensor, name, _refuse))
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._patches.close()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert not self._reads(func.overloadpacket.__name__, args, kwargs or {}), f"{func} reads values"
        return func(*args, **(kwargs or {}))

    def _reads(self, name: str, args: Any, kwargs: Any) -> bool:
        if name in self.INDEXING:
            return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
        if name == "repeat_interleave":
            return kwargs.get("output_size") is None
        if name == "_to_copy" and kwargs.get("device") is not None:
            return args[0].device.type != "cpu" == torch.device(kwargs["device"]).type
        return name in self.FORBIDDEN


def _refuse(*_: Any, **__: Any) -> NoReturn:
    raise AssertionError("a method of a tensor reads values")
