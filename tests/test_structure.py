"""The structure of the code: imports point down, names are exported once."""

import ast
import builtins
import importlib
import inspect
import pkgutil
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

import dynroute
import dynroute_metaworld
import dynroute_sb3

ROOT = Path(__file__).parent.parent
CORE = ROOT / "dynroute"
FILES = sorted(CORE.rglob("*.py"))
INTEGRATIONS = ROOT / "integrations"
INTEGRATION_FILES = sorted(INTEGRATIONS.rglob("*.py"))

# Each layer may import the layers before it, and its own.
LAYERS = [
    ["checks"],
    ["arguments"],
    ["route", "functional"],
    ["topology"],
    ["banks", "compositional", "gates"],
    ["routers"],
    ["losses", "drawing"],
    ["inspect"],
    ["execution"],
    ["levels"],
    ["recording"],
    ["networks"],
    ["testing"],
    ["command"],
]
INTEGRATION_LAYERS: dict[str, list[list[str]]] = {
    "dynroute_command": [["__main__"]],
    "dynroute_sb3": [
        ["environments", "gaussian", "losses", "normalizer", "observation", "parallel", "randomness", "storage"],
        ["actor", "critic", "points", "tree"],
        ["policies", "replay"],
        ["demonstrations"],
        ["on_policy", "options", "update"],
        ["report", "stored"],
        ["checkpoint"],
        ["sac"],
        ["callbacks", "overlap"],
    ],
    "dynroute_metaworld": [
        ["environment", "interrupts", "intervals", "metrics", "progress", "provenance", "seals"],
        ["tasks"],
        ["configuration", "demonstrations", "result", "workers"],
        ["methods", "presets", "run", "scripted", "threads", "vec_env"],
        ["collection", "evaluation"],
        ["cloning", "dagger"],
        ["imitation", "recorder", "summary"],
        ["training"],
        ["views.raster", "views.scene", "views.series", "views.tables"],
        ["views.evidence", "views.stage"],
        ["views.comparison", "views.watching"],
        ["views.canvas", "views.drawings", "views.sharing"],
        ["views.analysis", "views.figures", "views.film", "views.group_figures"],
        ["views.curves", "views.export"],
        ["views.explorer"],
        ["views.page"],
        ["views", "views.commands"],
        ["arguments", "bench", "cluster"],
        ["sweeps"],
        ["cli"],
    ],
}
INTEGRATION_RANK = {
    (package, name): rank
    for package, layers in INTEGRATION_LAYERS.items()
    for rank, layer in enumerate(layers)
    for name in layer
}
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}

# What a doctest types, and the error that it ends with.
EXAMPLE = re.compile(r"^ *>>> .*(?:\n *\.\.\..*)*", re.MULTILINE)
TRACEBACK = re.compile(r"^( *)Traceback \(most recent call last\):\n(?:\1 +.*\n)*\1([\w.]+)", re.MULTILINE)


def imported(path: Path) -> set[str]:
    """The absolute names of the modules that a file imports."""
    package = ["dynroute", *path.relative_to(CORE).parent.parts]
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            names.add(".".join(part for part in (base, node.module) if part))
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CORE)))
def test_imports_point_down(path: Path) -> None:
    own = path.relative_to(CORE).parts[0].removesuffix(".py")
    for name in imported(path):
        top, _, rest = name.partition(".")
        assert top in {"dynroute", "torch"} | sys.stdlib_module_names, f"{path} imports {name}"
        layer = rest.split(".")[0]
        if own != "__init__" and top == "dynroute" and layer:
            assert RANK[layer] <= RANK[own], f"{path} of layer {own} imports {layer} above it"


def test_every_module_has_a_layer() -> None:
    modules = {path.relative_to(CORE).parts[0].removesuffix(".py") for path in FILES} - {"__init__"}
    assert modules == set(RANK)


def integration_module(path: Path) -> tuple[str, str]:
    """The package of a file and its name inside, `views.page` or, for that of the package itself, nothing."""
    package, *inside = path.relative_to(INTEGRATIONS).with_suffix("").parts
    return package, ".".join(inside).removesuffix("__init__").removesuffix(".")


@pytest.mark.parametrize("path", INTEGRATION_FILES, ids=lambda path: "/".join(path.parts[-2:]))
def test_imports_of_the_integrations_point_down(path: Path) -> None:
    package, own = integration_module(path)
    inside = path.relative_to(INTEGRATIONS / package).parent.parts
    for node in ast.parse(path.read_text()).body:  # an import for types alone is further inside
        if isinstance(node, ast.ImportFrom) and node.level and own:
            assert node.module is not None
            other = ".".join([*inside[: len(inside) - node.level + 1], node.module])
            assert INTEGRATION_RANK[package, other] <= INTEGRATION_RANK[package, own], (
                f"{path} imports {other} above it"
            )
        elif isinstance(node, ast.ImportFrom) and package == "dynroute_sb3":
            assert not (node.module or "").startswith("dynroute_metaworld")


def test_every_module_of_the_integrations_has_a_layer() -> None:
    assert {integration_module(path) for path in INTEGRATION_FILES} == {
        *INTEGRATION_RANK,
        *((package, "") for package in INTEGRATION_LAYERS),
    }


@pytest.mark.parametrize("path", [*FILES, *INTEGRATION_FILES], ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_files_say_what_they_export(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    first = next(node for node in tree.body if isinstance(node, ast.Assign))
    assert getattr(first.targets[0], "id", "") == "__all__", f"{path} must define `__all__` first"


def _constants_first(name: str) -> tuple[int, str]:
    """The order that ruff keeps: CONSTANTS, Classes, functions."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)


def test_every_exported_name_exists_and_has_a_docstring() -> None:
    modules = [dynroute, dynroute_metaworld, dynroute_sb3] + [
        importlib.import_module(info.name)
        for package in (dynroute, dynroute_metaworld, dynroute_sb3)
        for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    ]
    for module in modules:
        assert sorted(module.__all__, key=_constants_first) == list(module.__all__), (
            f"{module.__name__}.__all__ must be sorted"
        )
        for name in module.__all__:
            assert getattr(module, name).__doc__, f"{module.__name__}.{name} must have a docstring"


def shown(text: str) -> set[str]:
    """The names that the doctests of a text use, and the errors they end with; an import alone shows nothing."""
    names = {error.split(".")[-1] for _, error in TRACEBACK.findall(text)}
    for example in EXAMPLE.findall(text):
        if "+SKIP" in example:
            continue
        for node in ast.walk(ast.parse(re.sub(r"^ *(>>>|\.\.\.) ?", "", example, flags=re.MULTILINE))):
            if isinstance(node, ast.Name):
                names.add(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                names |= {node.attr} if node.value.id.startswith("dynroute") else set()
    return names


def test_an_example_of_a_text_shows_what_it_uses_or_raises() -> None:
    text = """
    >>> from dynroute import Topology, backend
    >>> with dynroute.backend("skip"):
    ...     net = Soft()
    >>> net.record()  # doctest: +SKIP
    >>> net.draw()
    Traceback (most recent call last):
        ...
    dynroute_metaworld.run.RunError: a sentence about Hard
    """
    assert shown(text) & {"Topology", "backend", "Soft", "Hard", "record", "draw", "RunError"} == {
        "backend",
        "Soft",
        "RunError",
    }


@pytest.mark.parametrize("package", [dynroute, dynroute_sb3, dynroute_metaworld], ids=lambda package: package.__name__)
def test_every_public_function_and_class_is_shown_in_an_example(package: ModuleType) -> None:
    pages = set().union(*(shown(page.read_text()) for page in (ROOT / "docs").rglob("*.rst")))
    public = {name: getattr(package, name) for name in package.__all__}
    for name, thing in public.items():
        if not (inspect.isclass(thing) or inspect.isfunction(thing)):
            continue
        members = vars(thing).values() if inspect.isclass(thing) else ()
        own = [thing.__doc__, *(getattr(member, "__doc__", None) for member in members)]
        assert name in pages.union(*(shown(text) for text in own if text)), (
            f"{package.__name__}.{name} must be in a doctest of its docstring or of a page in docs"
        )


def unknown_names(page: str) -> set[str]:
    """Names that the examples of a page use and neither import nor define, which a reader who types them lacks."""
    lines = [line[4:] for line in page.splitlines() if re.match(r"(>>>|\.\.\.)( |$)", line)]
    nodes = list(ast.walk(ast.parse("\n".join(lines))))
    names = [node for node in nodes if isinstance(node, ast.Name)]
    known = {node.id for node in names if not isinstance(node.ctx, ast.Load)} | set(dir(builtins))
    for node in nodes:
        match node:
            case ast.Import(names=several) | ast.ImportFrom(names=several):
                known |= {(one.asname or one.name).partition(".")[0] for one in several}
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                known.add(name)
            case ast.arg(arg=name):
                known.add(name)
    return {node.id for node in names} - known


def test_unknown_names_are_found() -> None:
    page = """
>>> import a.b
>>> from c import d as e
>>> def f(x, *y):
...     z = x
...
...     return [g for g in y] + z
>>> a, e, f(h), print(z), d
"""
    assert unknown_names(page) == {"h", "d"}


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.rst"))], ids=lambda page: page.name
)
def test_the_examples_of_a_page_import_what_they_use(page: Path) -> None:
    assert not unknown_names(page.read_text()), f"{page.name} uses names in examples that it does not import"
