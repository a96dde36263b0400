"""The wheel holds exactly the three packages, and the core needs torch alone."""

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PROGRAM = """
import importlib.metadata, torch, dynroute
net = dynroute.ModuleRouting.mlp(5, 8, 4, 2)
y, route = net(torch.zeros(3, 5), return_route=True)
y.sum().backward()
assert y.shape == (3, 2)
assert dynroute.__version__ == importlib.metadata.version("dynroute")
for name, extra in (("dynroute_sb3", "sb3"), ("dynroute_metaworld", "metaworld")):
    try:
        __import__(name)
    except ImportError as error:
        assert f"pip install 'dynroute[{extra}]'" in str(error), error
    else:
        raise AssertionError(f"{name} must say which extra it misses")
print("works with", sorted(d.metadata["Name"] for d in importlib.metadata.distributions()))
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


def test_the_core_needs_torch_alone(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*install, "--constraint", str(ROOT / "constraints.txt"), str(wheel)], check=True, cwd=tmp_path)

    result = subprocess.run([str(python), "-c", PROGRAM], check=True, cwd=tmp_path, capture_output=True, text=True)
    assert "'torch'" in result.stdout
    assert not any(f"'{name}'" in result.stdout for name in ("numpy", "gymnasium", "stable_baselines3", "matplotlib"))
