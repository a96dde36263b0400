"""Saving modules to a folder, with arguments as JSON and parameters as safetensors; loading one runs no code of it."""

import copy
import inspect
import json
import math
import operator
import sys
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from itertools import chain, count
from numbers import Integral
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from .arguments import Makes, shown
from .banks import are_adjacent, keep_adjacent
from .files import check_not_file, flush, writing_file
from .gates import Gate
from .topology import Topology

__all__ = [
    "CONFIG",
    "WEIGHTS",
    "Filled",
    "Pretrained",
    "from_pretrained",
    "import_safetensors",
    "kept_arguments",
    "save_pretrained",
]

CONFIG = "config.json"
"""The file with the classes and their arguments."""

WEIGHTS = "model.safetensors"
"""The file with the parameters and buffers."""

PACKAGES = ("torch.nn", "dynroute", "dynroute.networks")
"""The packages whose classes are made without being given."""

Plain = bool | int | float | str | None


class Filled(NamedTuple):
    """A tensor argument that is also a parameter or buffer of the module; only its shape is saved.

    Example:
        >>> dynroute.saving.Filled((10, 768))
        Filled(shape=(10, 768))
    """

    shape: tuple[int, ...]
    """The shape of the tensor."""


class Pretrained(nn.Module):
    """A module with ``save_pretrained`` and ``from_pretrained``.

    It combines with ``huggingface_hub``: ``class Mixture(ModelRouting, PyTorchModelHubMixin)``, with the routed layer
    first, has ``push_to_hub``, and its ``from_pretrained`` accepts the name of a repository.
    """

    def save_pretrained(self, folder: str | Path, **hub: Any) -> Any:
        """Saves the module to a folder, see :func:`dynroute.save_pretrained`.

        Args:
            folder: The folder, which is created.
            hub: Options of ``huggingface_hub``, for classes that have its mixin.
        """
        mixin = getattr(super(), "save_pretrained", None)
        if mixin is not None:
            return mixin(folder, **hub)
        if hub:
            raise TypeError(f"`{next(iter(hub))}` is an option of huggingface_hub, whose mixin this class lacks.")
        return self._save_pretrained(Path(folder))

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        classes: Iterable[type[nn.Module]] = (),
        device: torch.device | str | None = None,
        **hub: Any,
    ) -> Self:
        """Loads a module from a folder, see :func:`dynroute.from_pretrained`.

        Args:
            folder: The folder.
            classes: Further classes that may be constructed.
            device: The device of the parameters; the CPU if None.
            hub: Options of ``huggingface_hub``, for classes that have its mixin.

        Example:
            >>> import tempfile
            >>> net = ModelRouting.ffn(8, 16, 4, shared=1).eval()
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     net.save_pretrained(folder)
            ...     twin = ModelRouting.from_pretrained(folder)
            >>> x = torch.randn(3, 8)
            >>> torch.equal(twin(x), net(x))
            True
        """
        mixin = getattr(super(), "from_pretrained", None)
        if mixin is not None:
            made: Self = mixin(folder, classes=classes, device=device, **hub)
            return made
        if hub:
            raise TypeError(f"`{next(iter(hub))}` is an option of huggingface_hub, whose mixin this class lacks.")
        return cls._from_pretrained(model_id=str(folder), classes=classes, device=device)

    def _save_pretrained(self, save_directory: Path) -> None:
        save_pretrained(self, save_directory)  # the mixin of huggingface_hub calls this method

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        classes: Iterable[type[nn.Module]] = (),
        device: torch.device | str | None = None,
        **hub: Any,
    ) -> Self:
        folder = Path(model_id)
        if hub and not folder.is_dir():
            options = ("revision", "cache_dir", "force_download", "token", "local_files_only")
            download = import_module("huggingface_hub").snapshot_download
            chosen = {name: hub[name] for name in options if name in hub}
            folder = Path(download(model_id, allow_patterns=[CONFIG, WEIGHTS], **chosen))
        made = from_pretrained(folder, classes=(*classes, cls), device=device)
        if not isinstance(made, cls):
            raise TypeError(f"`folder` must hold a {cls.__name__}, got a {type(made).__name__}; load it with that.")
        return made


def save_pretrained(module: nn.Module, folder: str | Path) -> None:
    """Saves a module to a folder: its classes and their arguments in ``config.json``, its parameters as safetensors.

    It saves classes of dynroute and ``torch.nn``, and your own if each argument of their constructor is an attribute of
    the same name or they have a method ``constructor_arguments``. Before anything is written, the module is constructed
    again as a test. Hooks and ``requires_grad`` are not saved. A :class:`~dynroute.Program` has a file of its own, and
    :func:`~dynroute.trace_program` makes one of whatever :func:`~dynroute.extract` returns.

    Needs safetensors: ``pip install 'dynroute[safetensors]'``.

    Args:
        module: The module.
        folder: The folder, which is created.

    Example:
        >>> import tempfile
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), ModelRouting.ffn(8, 16, 4))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_pretrained(model, folder)
        ...     twin = from_pretrained(folder)
        >>> all(map(torch.equal, twin.parameters(), model.parameters()))
        True
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"`module` must be a module, got {shown(module)}.")
    if not isinstance(folder, str | Path):
        raise TypeError(f"`folder` must be a path, got {shown(folder)}.")
    folder = Path(folder)
    check_not_file("folder", folder)
    safetensors = import_safetensors("save_pretrained")
    writer = _Writer()
    tree = writer.module(module, "module")
    with torch.device("meta"):
        try:
            rebuilt = _Reader({_name(kind): kind for kind in writer.classes}).module(tree)
        except _NotMadeError as error:
            raise ValueError(
                "`module` must be of classes that can be made again by their arguments, but one cannot: "
                f"{error.kind}: {error.__cause__}"
            ) from error
        _check_same(module, rebuilt)
    library = sys.modules[__package__ or "dynroute"]
    config = {"format": "dynroute", "version": library.__version__, "module": tree}
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in module.state_dict().items()}

    folder.mkdir(parents=True, exist_ok=True)
    with writing_file(folder / WEIGHTS) as weights, writing_file(folder / CONFIG) as description:
        description.write_text(json.dumps(config, indent=1, allow_nan=False) + "\n")
        safetensors.save_file(tensors, weights, metadata={"format": "pt"})
        flush(weights)  # both are whole before one takes the place of an older one


def from_pretrained(
    folder: str | Path, *, classes: Iterable[type[nn.Module]] = (), device: torch.device | str | None = None
) -> nn.Module:
    """Loads a module that :func:`save_pretrained` saved.

    No code of the folder runs: it constructs only classes of dynroute, of ``torch.nn`` and of `classes`.

    Args:
        folder: The folder.
        classes: Your own classes in the module.
        device: The device of the parameters; the CPU if None.

    Returns:
        The module, in evaluation mode.
    """
    if not isinstance(folder, str | Path):
        raise TypeError(f"`folder` must be a path, got {shown(folder)}.")
    folder, given = Path(folder), {}
    for kind in classes:
        if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
            raise TypeError(f"`classes` must list classes of modules, got {shown(kind)}.")
        given[_name(kind)] = kind
    safetensors = import_safetensors("from_pretrained")
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise ValueError(f"`folder` must hold {CONFIG} and {WEIGHTS}, but {folder / name} is missing.")
    try:
        config = json.loads((folder / CONFIG).read_text())
        tensors: dict[str, Tensor] = safetensors.load_file(folder / WEIGHTS)
    except Exception as error:  # damaged files raise many kinds of errors
        raise ValueError(f"`folder` must hold files that can be read, but {folder} does not: {error}") from error
    if not isinstance(config, dict) or config.get("format") != "dynroute":
        raise ValueError(f"`folder` must hold what `save_pretrained` wrote, but {folder / CONFIG} is of another kind.")

    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        module = _Reader(given).module(config.get("module"))
    _load(module, tensors, folder / WEIGHTS)
    return module.to(device).eval() if device is not None else module.eval()


def kept_arguments(module: nn.Module, others: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Reads the arguments of a module's constructor from the attributes of the same names, except `device` and `dtype`.

    A missing attribute is an error, except for arguments with a default in classes of ``torch.nn``.

    Args:
        module: The module.
        others: Arguments by name that are not attributes; names that the constructor does not take are ignored.

    Example:
        >>> dynroute.saving.kept_arguments(TopK(2, capacity=1.5))
        {'k': 2, 'capacity': 1.5}
    """
    kind, others = type(module), others or {}
    if kind.__init__ is nn.Module.__init__:
        return {}
    of_torch = kind.__module__.startswith("torch.")
    arguments: dict[str, Any] = {}
    for name, parameter in list(inspect.signature(kind.__init__).parameters.items())[1:]:
        several = parameter.kind is parameter.VAR_POSITIONAL
        if name in ("device", "dtype") or parameter.kind is parameter.VAR_KEYWORD or (several and _package(kind)):
            continue
        if name in others:
            arguments[name] = others[name]
            continue
        value = getattr(module, name, parameter.default if of_torch else parameter.empty)
        if value is parameter.empty or several:
            raise TypeError(
                f"`{name}` of {kind.__name__} must be kept as an attribute of that name to be saved; or give the class "
                "a method `constructor_arguments`."
            )
        if name == "bias" and (value is None or isinstance(value, Tensor)):
            value = value is not None
        arguments[name] = value
    return arguments


class _Writer:
    """Turns modules and their arguments into plain data."""

    def __init__(self) -> None:
        self.classes: set[type[nn.Module]] = set()
        self._places: dict[nn.Module, int] = {}

    def module(self, module: nn.Module, place: str) -> dict[str, Any]:
        if module in self._places:
            return {"again": self._places[module]}
        self._places[module] = len(self._places)
        kind = type(module)
        if _package(kind) is None:
            self.classes.add(kind)
        if kind in (nn.Sequential, nn.ModuleList):
            parts = {
                name: part for name, part in module._modules.items() if part is not None
            }  # includes repeated parts
            children = {name: self.module(part, f"{place}.{name}") for name, part in parts.items()}
            return {"class": _name(kind), "children": children}
        method = getattr(module, "constructor_arguments", None)
        arguments = method() if callable(method) else kept_arguments(module)
        tree = {
            "class": _name(kind),
            "arguments": {name: self.value(value, f"{place}.{name}") for name, value in arguments.items()},
        }
        if isinstance(module, Gate) and "capacity" not in arguments and module.capacity is not None:
            tree["capacity"] = self.value(module.capacity, f"{place}.capacity")  # it can be set on every gate
        return tree

    def value(self, value: object, place: str) -> Any:
        if isinstance(value, nn.Module):
            return self.module(value, place)
        if isinstance(value, Makes):
            return {"makes": self.module(value.module, place)}
        if isinstance(value, Filled):
            return {"filled": list(value.shape)}
        if isinstance(value, Topology):
            return {"topology": [list(parents) for parents in value.parents]}
        if isinstance(value, list | tuple):
            items = [self.value(item, f"{place}[{i}]") for i, item in enumerate(value)]
            parts = [item for item in value if isinstance(item, nn.Module)]
            adjacent = len(parts) == len(value) > 1 and are_adjacent(parts)
            return {"adjacent": items} if adjacent else items
        if isinstance(value, bool | int | str) or value is None or (isinstance(value, float) and math.isfinite(value)):
            return value
        if isinstance(value, Integral):
            return operator.index(value)  # of numpy
        raise TypeError(
            f"`{place}` must be a number, text, a module, a Topology, None or a list of those to be saved, "
            f"got {shown(value)}."
        )


class _NotMadeError(ValueError):
    """A class refused its arguments."""

    def __init__(self, kind: str, error: Exception) -> None:
        super().__init__(f"`folder` must hold the arguments of {kind}, but: {error or type(error).__name__}")
        self.kind = kind


class _Reader:
    """Makes modules from plain data."""

    def __init__(self, classes: Mapping[str, type[nn.Module]]) -> None:
        self._classes = classes
        self._made: dict[int, nn.Module] = {}
        self._seen = 0

    def module(self, tree: object) -> nn.Module:
        match tree:
            case {"again": int(place)} if place in self._made:
                return self._made[place]
            case {"class": str(name), "children": dict(children)}:
                kind, place = self._kind(name), self._next()
                if kind not in (nn.Sequential, nn.ModuleList):
                    raise ValueError(f"`folder` must describe {name} by its arguments, got children.")
                made: nn.Module = kind()
                for child, part in children.items():
                    inner = self.module(part)
                    try:
                        made.add_module(child, inner)
                    except KeyError as error:  # torch refuses dots and attribute names
                        raise ValueError(
                            f"`folder` must describe the parts of {name} by names, got {child!r}: {error.args[0]}."
                        ) from error
            case {"class": str(name), "arguments": dict(arguments), **others}:
                kind, place = self._kind(name), self._next()
                values = {key: self.value(value) for key, value in arguments.items()}
                try:
                    made = kind(**values)
                    capacity: Any = others.get("capacity")
                    if isinstance(made, Gate) and capacity is not None:
                        made.capacity = capacity
                except Exception as error:  # wrong arguments raise many kinds of errors
                    raise _NotMadeError(name, error) from error
            case _:
                raise ValueError(f"`folder` must describe a module by its class and arguments, got {shown(tree)}.")
        self._made[place] = made
        return made

    def value(self, tree: object) -> Any:
        match tree:
            case {"class": _} | {"again": _}:
                return self.module(tree)
            case {"makes": part}:
                first, calls = self.module(part), count()
                return lambda: copy.deepcopy(first) if next(calls) else first
            case {"filled": list(shape)}:
                return self._made_by(torch.zeros, shape)
            case {"topology": parents}:
                return self._made_by(Topology, parents)
            case {"adjacent": list(parts)}:
                modules = [self.module(part) for part in parts]
                keep_adjacent(modules)
                return modules
            case list():
                values = [self.value(item) for item in tree]
                return values if any(isinstance(value, nn.Module | list) for value in values) else tuple(values)
            case dict():
                raise ValueError(f"`folder` must describe arguments, got {shown(tree)}.")
        return tree

    def _made_by(self, make: Callable[[Any], object], description: object) -> object:
        try:
            return make(description)
        except Exception as error:
            raise ValueError(f"`folder` must describe arguments, got {shown(description)}: {error}") from error

    def _next(self) -> int:
        self._seen += 1
        return self._seen - 1

    def _kind(self, name: str) -> type[nn.Module]:
        package, _, class_name = name.rpartition(".")
        kind: object = None
        if package in PACKAGES:
            library = import_module(package)
            public = package == "torch.nn" or class_name in library.__all__
            kind = getattr(library, class_name, None) if public else None
        if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
            kind = self._classes.get(name)
        if kind is None:
            raise ValueError(
                f"`classes` must hold {name}, which the folder has parts of; only classes of dynroute and torch.nn are "
                "made without being given."
            )
        return kind


def _name(kind: type[nn.Module]) -> str:
    package = _package(kind)
    return kind.__qualname__ if package is None else f"{package}.{kind.__name__}"


def _package(kind: type[nn.Module]) -> str | None:
    """The package of :data:`PACKAGES` in which a class is found by its name; None if it is a class of others."""
    loaded = [package for package in PACKAGES if package in sys.modules]
    return next((each for each in loaded if getattr(sys.modules[each], kind.__name__, None) is kind), None)


def _check_same(module: nn.Module, rebuilt: nn.Module) -> None:
    """Raises an error if a module rebuilt from the arguments of another one differs from it."""
    expected, got = (
        {name: tensor.shape for name, tensor in net.state_dict().items()}
        | {
            name: repr(part) if isinstance(part, Gate) else type(part)
            for name, part in net.named_modules(remove_duplicate=False)
        }
        for net in (module, rebuilt)
    )
    ties = [
        sorted(
            sorted(name for name, other in net.named_parameters(remove_duplicate=False) if other is parameter)
            for parameter in net.parameters()
        )
        for net in (module, rebuilt)
    ]
    differing = [name for name in {**expected, **got} if expected.get(name) != got.get(name)]
    if differing or ties[0] != ties[1]:
        where = f"`{differing[0]}` differs" if differing else "other parameters are shared"
        raise ValueError(
            f"`module` must be what its classes make of their arguments, but {where}; was a part changed after it was "
            "made?"
        )


def _load(module: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    parameters = dict(module.named_parameters())
    types = {tensors[name].dtype for name in parameters if name in tensors and tensors[name].is_floating_point()}
    if len(types) == 1 and types != {parameter.dtype for parameter in parameters.values()}:
        module.to(types.pop())  # parameters that share memory keep it
    named = chain(module.named_parameters(), module.named_buffers())
    stored = {tensor: tensors[name].dtype for name, tensor in named if name in tensors}
    if any(tensor.dtype != dtype for tensor, dtype in stored.items()):
        module._apply(lambda tensor: tensor.to(stored.get(tensor, tensor.dtype)))  # type: ignore[no-untyped-call]
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"`folder` must hold the parameters of a module, but {path} does not fit: {error}") from error


def import_safetensors(function: str) -> Any:
    """Imports ``safetensors.torch`` for a function; the error says what to install."""
    try:
        return import_module("safetensors.torch")
    except ImportError as error:
        raise ImportError(f"`{function}` needs safetensors; type: pip install 'dynroute[safetensors]'") from error
