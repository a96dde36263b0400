"""A module as a list of torch's basic operations, in one file that cannot run code.

The file is a safetensors file: the tensors are the parameters, and its metadata holds the operations as JSON. Loading
looks them up by name among those that compute tensors from tensors, torch's core ATen operations and the few of
:data:`EXTRA`. It needs neither the classes of the module nor its source. A .pt2 file of ``torch.export`` holds as much,
but reading one may unpickle, and evaluates text that it contains: it is for files of one's own.
"""

import json
import math
import operator
import sys
import warnings
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, fx, nn

from .arguments import check_tensor, shown

__all__ = ["EXTRA", "FORMAT", "Program", "trace_program"]

FORMAT = "dynroute program 1"
"""The name of the format, in the metadata of a file."""

EXTRA = ("linear.default", "linalg_vector_norm.default", "sort.stable")
"""Operations beside torch's core ones that a program may have."""

Operation = tuple[str, str, list[Any], dict[str, Any]]
"""The name of a value, the operation that makes it, and the arguments of that, as plain data."""


class Program(nn.Module):
    """Operations and tensors that compute what a module did; :func:`trace_program` makes it.

    Args:
        operations: The operations in their order, as plain data.
        output: The name of the value that is returned.
        tensors: The parameters, buffers and constants by name.
        features: The width of the input.
        notes: What else is known of it, as plain data.

    Example:
        >>> import tempfile
        >>> net = ModuleRouting.mlp(5, 8, 6, 2).eval()
        >>> x = torch.randn(16, 5)
        >>> program = dynroute.trace_program(net, x, notes={"task": "an example"})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     program.save(f"{folder}/net.safetensors")
        ...     loaded = dynroute.Program.load(f"{folder}/net.safetensors")
        >>> torch.allclose(loaded(x[:3]), net(x[:3]), atol=1e-6), loaded.notes
        (True, {'task': 'an example'})
    """

    def __init__(
        self,
        operations: list[Operation],
        output: str,
        tensors: Mapping[str, Tensor],
        features: int,
        notes: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.operations, self.output, self.features, self.notes = operations, output, features, dict(notes)
        self.tensors = list(tensors)
        for i, tensor in enumerate(tensors.values()):
            self.register_buffer(f"tensor_{i}", tensor)
        self._run = {torch.device("cpu"): _compile(operations, output, self.tensors, torch.device("cpu"))}

    def forward(self, x: Tensor) -> Tensor:
        """Computes the output for inputs with shape ``[batch, features]``."""
        if x.dim() != 2 or x.shape[1] != self.features:
            raise ValueError(f"`x` must have shape (batch, {self.features}), got {tuple(x.shape)}.")
        if x.device not in self._run:  # some operations name a device
            self._run[x.device] = _compile(self.operations, self.output, self.tensors, x.device)
        return self._run[x.device](x, *self.buffers())

    @property
    def parameter_count(self) -> int:
        """How many numbers there are, constants included."""
        return sum(tensor.numel() for tensor in self.buffers())

    def save(self, path: str | Path) -> None:
        """Writes one safetensors file, which appears whole or not at all.

        Needs safetensors: ``pip install 'dynroute[safetensors]'``.

        Args:
            path: The file.
        """
        path, save_file = Path(path), _safetensors("save").torch.save_file
        description = {
            "operations": self.operations,
            "output": self.output,
            "tensors": self.tensors,
            "features": self.features,
            "notes": self.notes,
        }
        metadata = {"format": "pt", "dynroute": FORMAT, "program": json.dumps(description, allow_nan=False)}
        tensors = {
            name: tensor.detach().cpu().contiguous().clone()
            for name, tensor in zip(self.tensors, self.buffers(), strict=True)
        }
        part = path.with_name(f".{path.name}.part")
        save_file(tensors, part, metadata=metadata)
        part.replace(path)

    @classmethod
    def load(cls, path: str | Path, *, device: torch.device | str = "cpu") -> Self:
        """Reads what :meth:`save` wrote; nothing in the file can run.

        Args:
            path: The file.
            device: Where to put the tensors.
        """
        path, safe_open = Path(path), _safetensors("load").safe_open
        if not path.is_file():
            raise FileNotFoundError(f"{path} must be a file that Program.save wrote, there is none.")
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        except Exception as error:  # damage shows in many ways
            raise ValueError(f"`path` must be a whole safetensors file, {path} is not: {error}") from error
        if metadata.get("dynroute") != FORMAT:
            raise ValueError(f"`path` must be a file that Program.save wrote, {path} is another one.")
        try:
            told = json.loads(metadata["program"])
            ordered = {name: tensors[name] for name in told["tensors"]}
            made = cls(told["operations"], told["output"], ordered, int(told["features"]), told["notes"])
        except (LookupError, TypeError, AttributeError, RecursionError, ValueError) as error:
            raise ValueError(f"`path` must hold operations that this torch has, {path} does not: {error}") from error
        return made.to(device).eval()

    def extra_repr(self) -> str:
        return f"{self.features} features, {len(self.operations)} operations, {self.parameter_count:,} numbers"


def trace_program(module: nn.Module, x: Tensor, *, notes: Mapping[str, Any] | None = None) -> Program:
    """Makes a program of what a module computes in evaluation, for batches of any size.

    Args:
        module: A module of one input that ``torch.export`` can export. Where a router decides, samples need not take
            the route of the example.
        x: An example of the input, with shape ``[batch, features]`` and at least two rows.
        notes: What else is to be known of it, as plain data.

    Returns:
        The program, which shares no memory with the module.

    Example:
        >>> dynroute.trace_program(nn.Sequential(nn.Linear(5, 8), nn.Tanh()), torch.randn(4, 5))
        Program(5 features, 2 operations, 48 numbers)
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"`module` must be a module, got {shown(module)}.")
    check_tensor("x", x)
    if x.dim() != 2 or len(x) < 2:
        raise ValueError(f"`x` must have shape (batch, features) with at least two rows, got {tuple(x.shape)}.")
    notes = {} if notes is None else notes
    try:
        plain = json.loads(json.dumps(dict(notes), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise TypeError(f"`notes` must be plain data with finite numbers, got {shown(notes)}.") from error

    training = {part: part.training for part in module.modules()}
    module.eval()
    try:
        exported = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    finally:
        for part, mode in training.items():
            part.training = mode
    table = getattr(torch.export, "default_decompositions", lambda: None)()
    if table is not None:
        table.pop(torch.ops.aten.linear.default, None)  # two operations more for each, and no gain
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*treespec", FutureWarning)  # torch 2.13 warns of itself
        exported = exported.run_decompositions(table)
    return _of_export(exported, x.shape[1], plain)


def _of_export(exported: Any, features: int, notes: Mapping[str, Any]) -> Program:
    """The program of an exported one."""
    signature = exported.graph_signature
    (given,), (result,) = signature.user_inputs, signature.user_outputs
    stored = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    values = {**dict(exported.state_dict), **dict(exported.constants)}
    nodes = {node.name: node for node in exported.graph.nodes}
    needed, left = set(), [nodes[result]]
    while left:  # what only checks is needed by nothing
        node = left.pop()
        if node not in needed:
            needed.add(node)
            left += node.all_input_nodes
    names: dict[fx.Node, str] = {}
    tensors: dict[str, Tensor] = {}
    operations: list[Operation] = []
    for node in exported.graph.nodes:
        if node not in needed:
            continue
        if node.op == "placeholder":
            names[node] = "x" if node.name == given else f"tensor:{stored[node.name]}"
            if node.name != given:
                tensors[stored[node.name]] = values[stored[node.name]].detach().clone()
            continue
        args, kwargs = (_plain(part, names) for part in (list(node.args), dict(node.kwargs)))
        names[node] = f"v{len(operations)}"
        operations.append((names[node], _name(node.target), args, kwargs))
    return Program(operations, names[nodes[result]], tensors, features, notes).eval()


def _name(target: Any) -> str:
    if target is operator.getitem:
        return "getitem"
    name = str(target).removeprefix("aten.")
    if _operation(name) is not target:
        raise ValueError(f"`module` must be made of basic operations of torch, got {target}.")
    return name


def _operation(name: str) -> Callable[..., Any]:
    """The operation of a name; a name of anything that may do more than compute is refused."""
    if name == "getitem":
        return operator.getitem
    packet, _, overload = name.partition(".")
    known = packet.isidentifier() and overload.isidentifier() and not name.startswith("__")
    found = getattr(getattr(torch.ops.aten, packet, None), overload, None) if known else None
    if not isinstance(found, torch._ops.OpOverload) or not (torch.Tag.core in found.tags or name in EXTRA):
        raise ValueError(f"{name!r} is no operation that a program may have.")
    if torch.Tag.nondeterministic_seeded in found.tags:
        raise ValueError(f"{name!r} draws numbers, and is no operation that a program may have.")
    return found


def _plain(value: Any, names: Mapping[fx.Node, str]) -> Any:
    """An argument of an operation as plain data: tensors and sizes by the names of their values."""
    if isinstance(value, fx.Node):
        return {"value": names[value]}
    if isinstance(value, (list, tuple)):
        return [_plain(each, names) for each in value]
    if isinstance(value, dict):
        return {key: _plain(each, names) for key, each in value.items()}
    if isinstance(value, torch.device):
        return {"device": True}
    for kind, what in ((torch.dtype, "dtype"), (torch.layout, "layout"), (torch.memory_format, "memory_format")):
        if isinstance(value, kind):
            return {what: str(value).removeprefix("torch.")}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if isinstance(value, bool | int | float) or value is None:
        return value
    raise TypeError(f"`module` must have operations with numbers as arguments, got {shown(value)}.")


def _compile(
    operations: list[Operation], output: str, tensors: list[str], device: torch.device
) -> Callable[..., Tensor]:
    """A function of the input and the tensors. torch.fx writes its source, and no text of a file gets into it."""
    graph = fx.Graph()
    made: dict[str, fx.Node] = {"x": graph.placeholder("x")}
    for i, name in enumerate(tensors):
        made[f"tensor:{name}"] = graph.placeholder(f"tensor_{i}")

    def read(tree: Any) -> Any:
        match tree:
            case {"value": str(name)}:
                return made[name]
            case {"dtype": str(name)} | {"layout": str(name)} | {"memory_format": str(name)}:
                (kind,) = tree
                found = getattr(torch, name, None)
                if not isinstance(found, getattr(torch, kind)):
                    raise ValueError(f"{name!r} is no {kind} of torch.")
                return found
            case {"float": "inf" | "-inf" | "nan" as text}:
                return float(text)
            case {"device": True}:
                return device
            case list():
                return [read(each) for each in tree]
            case None | bool() | int() | float():
                return tree
        raise ValueError(f"an argument must be a number, a value or a list, got {shown(tree)}.")

    for name, operation, args, kwargs in operations:
        if not all(isinstance(key, str) and key.isidentifier() for key in kwargs):
            raise ValueError(f"keywords must be names, got {shown(list(kwargs))}.")
        given = {key: read(value) for key, value in kwargs.items()}
        made[str(name)] = graph.call_function(_operation(operation), tuple(read(each) for each in args), given)
    graph.output(made[output])
    graph.lint()
    function = fx.GraphModule({}, graph)
    return function.forward


def _safetensors(method: str) -> Any:
    try:
        import_module("safetensors.torch")
    except ImportError as error:
        raise ImportError(f"`Program.{method}` needs safetensors; type: pip install 'dynroute[safetensors]'") from error
    return sys.modules["safetensors"]
