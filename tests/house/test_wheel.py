"""The wheel holds the packages alone, its page has absolute links, and the core needs torch alone.

`make release` runs these tests on what it built, in the folder that DYNROUTE_DIST names.
"""

import email
import importlib.metadata
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from packaging.metadata import Metadata

ROOT = Path(__file__).parents[2]

PROGRAM = """
import sys; sys.path[:0] = sys.argv[1:]
import importlib.metadata, importlib.util, torch, dynroute
for name in ("numpy", "gymnasium", "stable_baselines3", "matplotlib"):
    assert importlib.util.find_spec(name) is None, name
net = dynroute.ModuleRouting.mlp(5, 8, 4, 2)
y, route = net(torch.zeros(3, 5), return_route=True)
y.sum().backward()
assert y.shape == (3, 2)
assert dynroute.__file__.startswith(sys.argv[1])
assert dynroute.__version__ == importlib.metadata.version("dynroute")
for name, extra in (("dynroute_sb3", "sb3"), ("dynroute_metaworld", "metaworld")):
    try:
        __import__(name)
    except ImportError as error:
        assert f"pip install 'dynroute[{extra}]'" in str(error), error
    else:
        raise AssertionError(f"{name} must say which extra it misses")
"""


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an sdist and of the wheel that is built from it."""
    if built := os.environ.get("DYNROUTE_DIST"):
        return ROOT / built
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    (path,) = dist.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Metadata:
    archive = zipfile.ZipFile(wheel)
    (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    return Metadata.from_email(archive.read(name), validate=True)


def test_top_level_of_the_wheel(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.split("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {
        "dynroute",
        "dynroute_sb3",
        "dynroute_metaworld",
        "dynroute_command",
    }
    assert {f"{name}/py.typed" for name in top if not name.endswith(".dist-info")} <= set(names)
    assert {f"dynroute_metaworld/report/page.{kind}" for kind in ("html", "css", "js")} <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_sdist_holds_what_builds_tests_and_documents(dist: Path) -> None:
    (path,) = dist.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = {
        "pyproject.toml",
        "hatch_build.py",
        "README.md",
        "CITATION.cff",
        "constraints.txt",
        "Makefile",
        "docs/conf.py",
    }
    assert needed <= names
    assert any(name.startswith("tests/") for name in names)
    assert not [name for name in names if re.search(r"__pycache__|\.pyc$|^(\.venv|demo|runs|dist)/|_build/", name)]


def test_the_package_page_renders_with_absolute_links_to_files_that_exist(metadata: Metadata) -> None:
    assert metadata.description_content_type == "text/markdown"
    assert metadata.description
    page = MarkdownIt("commonmark").enable("table").render(metadata.description)
    assert page.count("<h1>") == 1
    assert page.count("<table>") == 3
    links = re.findall(r'(?:href|src)="([^"]+)"', page)
    assert metadata.project_urls
    repository = metadata.project_urls["Repository"]
    inside = [link.removeprefix(f"{repository}/") for link in links if link.startswith(repository)]
    assert all(link.startswith("https://") for link in links)
    assert sum(link.startswith("raw/HEAD/docs/pictures/") for link in inside) == 4
    assert all((ROOT / link.split("/", 2)[2]).exists() for link in inside)


def required(lines: list[str] | None) -> set[str]:
    """The distributions that requirements without an extra name."""
    return {re.split(r"[^\w.-]", line)[0] for line in lines or () if "extra ==" not in line}


def link_torch(folder: Path) -> None:
    """Links what torch asks for, and nothing else that is installed here; an installation would take a minute."""
    found, waiting = set[str](), {"torch"}
    while waiting:
        name = waiting.pop()
        found.add(name)
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:  # of another system
            continue
        waiting |= required(distribution.requires) - found
        for file in distribution.files or ():
            top = Path(distribution.locate_file(file.parts[0]))
            if top.exists() and file.parts[0] not in ("..", "__pycache__") and not (folder / top.name).exists():
                (folder / top.name).symlink_to(top)


def test_the_core_needs_torch_alone(wheel: Path, tmp_path: Path) -> None:
    core, others = tmp_path / "core", tmp_path / "others"
    zipfile.ZipFile(wheel).extractall(core)
    (metadata,) = core.glob("*.dist-info/METADATA")
    assert required(email.message_from_string(metadata.read_text()).get_all("Requires-Dist")) == {"torch"}
    others.mkdir()
    link_torch(others)
    subprocess.run([sys.executable, "-I", "-S", "-c", PROGRAM, str(core), str(others)], check=True, cwd=tmp_path)
