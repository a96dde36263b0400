"""The wheel holds exactly the four packages, and the core needs torch alone."""

import email
import importlib.metadata
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

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
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


def test_top_level_of_the_wheel(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.split("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {
        "dynroute",
        "dynroute_sb3",
        "dynroute_metaworld",
        "dynroute_command",
    }
    assert {"dynroute/py.typed", "dynroute_sb3/py.typed", "dynroute_metaworld/py.typed"} <= set(names)
    assert {f"dynroute_metaworld/report/page.{kind}" for kind in ("html", "css", "js")} <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)


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
