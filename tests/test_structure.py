"""The structure of the code: imports point down, files are small, names are exported once."""

import ast
import importlib
import pkgutil
import sys
from pathlib import Path

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
    ["choice"],
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
INTEGRATION_LAYERS = {
    "dynroute_sb3": [
        ["environments", "gaussian", "losses", "normalizer", "observation", "parallel", "randomness", "storage"],
        ["actor", "critic", "points", "tree"],
        ["policies", "replay"],
        ["demonstrations"],
        ["on_policy", "options", "update"],
        ["checkpoint", "report"],
        ["sac"],
        ["callbacks", "overlap"],
    ],
    "dynroute_metaworld": [
        ["environment", "interrupts", "intervals", "metrics", "progress", "tasks"],
        ["configuration", "demonstrations", "result", "workers"],
        ["methods", "presets", "run", "scripted", "vec_env"],
        ["collection", "evaluation"],
        ["cloning", "dagger"],
        ["imitation", "recorder", "summary"],
        ["training"],
        ["views.raster", "views.scene", "views.series", "views.tables"],
        ["views.evidence", "views.stage"],
        ["views.comparison", "views.watching"],
        ["views.curves", "views.drawings", "views.figures"],
        ["views.analysis", "views.film"],
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
def test_files_are_small_and_say_what_they_export(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 300
    tree = ast.parse(text)
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
