"""A mode in which reading a value from the device is an error, and networks to run in it."""

from typing import Any

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

    FORBIDDEN = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal", "bincount")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func.overloadpacket.__name__ not in self.FORBIDDEN, f"{func} reads values"
        return func(*args, **(kwargs or {}))
