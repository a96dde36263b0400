"""The structure of the code: imports point down, names are exported once."""

import ast
import builtins
import graphlib
import importlib
import importlib.util
import inspect
import pkgutil
import re
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path
from types import ModuleType

import pytest

import dynroute
import dynroute_command
import dynroute_metaworld
import dynroute_sb3

ROOT = Path(__file__).parents[2]
CORE = ROOT / "dynroute"
FILES = sorted(CORE.rglob("*.py"))
INTEGRATIONS = ROOT / "integrations"
INTEGRATION_FILES = sorted(INTEGRATIONS.rglob("*.py"))

# What a doctest types, and the error that it ends with.
EXAMPLE = re.compile(r"^ *>>> .*(?:\n *\.\.\..*)*", re.MULTILINE)
TRACEBACK = re.compile(r"^( *)Traceback \(most recent call last\):\n(?:\1 +.*\n)*\1([\w.]+)", re.MULTILINE)


PACKAGES = [CORE, *(INTEGRATIONS / name for name in ("dynroute_sb3", "dynroute_metaworld", "dynroute_command"))]


def modules(package: Path) -> dict[str, Path]:
    """The files of a package by the names they are imported by."""
    paths = {".".join(path.relative_to(package.parent).with_suffix("").parts): path for path in package.rglob("*.py")}
    return {name.removesuffix(".__init__"): path for name, path in paths.items()}


def imported(name: str, path: Path, known: Collection[str]) -> set[str]:
    """The modules that one imports, those for types alone and those inside functions too."""
    around = name.split(".") if path.stem == "__init__" else name.split(".")[:-1]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            inside = around[: len(around) - node.level + 1] if node.level else []
            base = ".".join([*inside, *filter(None, [node.module])])
            parts = {f"{base}.{alias.name}" for alias in node.names}
            found |= {part if part in known else base for part in parts}
    return found


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
@pytest.mark.parametrize("depth", [2, None], ids=["folders", "files"])
def test_imports_have_no_circle(package: Path, depth: int | None) -> None:
    known = modules(package)
    arrows: dict[str, set[str]] = {}
    for name, path in known.items():
        own = ".".join(name.split(".")[:depth])
        others = {".".join(other.split(".")[:depth]) for other in imported(name, path, known) & known.keys()}
        arrows.setdefault(own, set()).update(others - {own})
    circle: list[str] = []
    try:
        graphlib.TopologicalSorter(arrows).prepare()
    except graphlib.CycleError as error:
        circle = error.args[1]
    assert not circle, " imports ".join(reversed(circle))


ARROWS = ("envs", "imitation", "runs", "report")
"""The folders of dynroute_metaworld; each imports only those before it, and the command's files import them all."""


@pytest.mark.parametrize("folder", ARROWS)
def test_folders_of_meta_world_import_those_before_them(folder: str) -> None:
    known = modules(INTEGRATIONS / "dynroute_metaworld")
    allowed = tuple(f"dynroute_metaworld.{one}" for one in ARROWS[: ARROWS.index(folder) + 1])
    for name, path in known.items():
        if name.startswith(allowed[-1]):
            above = sorted(one for one in imported(name, path, known) & known.keys() if not one.startswith(allowed))
            assert not above, f"{name} must import only {', '.join(allowed)}, it imports {', '.join(above)}"


@pytest.mark.parametrize(
    ("package", "foreign"),
    [(CORE, {"dynroute_sb3"}), (INTEGRATIONS / "dynroute_sb3", {"dynroute_metaworld"})],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_package_knows_nothing_of_those_above_it(package: Path, foreign: set[str]) -> None:
    tops = {other.split(".")[0] for name, path in modules(package).items() for other in imported(name, path, ())}
    assert not tops & (foreign | {"dynroute_metaworld"})
    if package == CORE:
        assert tops <= {"dynroute", "torch", "triton"} | sys.stdlib_module_names
        assert not any(
            "triton" in imported(name, path, ())
            for name, path in modules(package).items()
            if not path.stem.endswith("_kernels")  # imported where they run, since torch alone is needed
        )


def test_what_computes_never_imports_what_shows() -> None:
    known = modules(CORE)
    shows = {"dynroute.drawing", "dynroute.inspect"}
    readers = {name for name, path in known.items() if imported(name, path, known) & shows}
    assert readers == {"dynroute", "dynroute.inspect", "dynroute.recording"}


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
    packages = [dynroute, dynroute_command, dynroute_metaworld, dynroute_sb3]
    modules = packages + [
        importlib.import_module(info.name)
        for package in packages
        for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
        if importlib.util.find_spec("triton") or not info.name.endswith("_kernels")
    ]
    for module in modules:
        assert sorted(module.__all__, key=_constants_first) == list(module.__all__), (
            f"{module.__name__}.__all__ must be sorted"
        )
        for name in module.__all__:
            assert getattr(module, name).__doc__, f"{module.__name__}.{name} must have a docstring"


@pytest.mark.parametrize("package", [dynroute, dynroute_sb3, dynroute_metaworld], ids=lambda package: package.__name__)
def test_an_import_of_all_names_hides_no_module_of_python(package: ModuleType) -> None:
    assert not set(package.__all__) & sys.stdlib_module_names


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
    dynroute_metaworld.runs.run.RunError: a sentence about Hard
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


def test_a_public_name_that_a_user_replaced_stays_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dynroute.TopK", replaced := object())
    assert not hasattr(dynroute, "nothing_of_that_name")  # asking for it imports the library's names
    assert dynroute.TopK is replaced


def test_slow_tests_are_in_the_files_that_make_reads() -> None:
    """`make test` leaves out what is marked, and `make test-slow` reads the files of tests that mark something."""
    mark = "mark." + "slow"
    places = {path for folder in ("tests", "dynroute", "integrations") for path in (ROOT / folder).rglob("*.py")}
    marked = {path for path in places if mark in path.read_text()}
    assert marked
    rules = dict(re.findall(r"^(test[\w-]*):.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert '-m "not slow"' in rules["test"]
    (listing,) = re.findall(r"-m slow \$\$\((grep .*)\)$", rules["test-slow"], re.MULTILINE)
    read = subprocess.run(listing, shell=True, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {ROOT / line for line in read.splitlines()} == marked


def test_the_citation_has_the_version_and_the_address() -> None:
    citation = (ROOT / "CITATION.cff").read_text()
    (address,) = re.findall(r'^repository = "(.*?)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert f"version: {dynroute.__version__}\n" in citation
    assert f"repository-code: {address} " in citation
