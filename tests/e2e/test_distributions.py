"""What is built and installed holds the product's files, all of them and no others."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Final

import pytest

from flashpool.envs import EnvSettings
from flashpool.envs.uv_cli import find_uv

ROOT: Final = Path(__file__).resolve().parents[2]
PACKAGES: Final = ("pool", "envs", "frontends")
#: What a checkout has besides its sources.
NOT_SOURCES: Final = (".*", "build", "dist", "__pycache__", "*.egg-info")


def uv(*arguments: str | Path, cwd: Path) -> str:
    command = [find_uv(EnvSettings()), *arguments, "--quiet", "--python", sys.executable]
    done = subprocess.run(
        command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=100
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def files_under(folder: Path) -> set[str]:
    """Return the relative paths of the files, except bytecode."""
    found = (path for path in folder.rglob("*") if not path.is_dir())
    return {str(path.relative_to(folder)) for path in found if "__pycache__" not in path.parts}


def product(root: Path) -> set[str]:
    return {f"{name}/{path}" for name in PACKAGES for path in files_under(root / name)}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree: a build leaves files behind, and includes those of earlier builds."""
    copy = tmp_path_factory.mktemp("distributions") / "checkout"
    shutil.copytree(ROOT, copy, symlinks=True, ignore=shutil.ignore_patterns(*NOT_SOURCES))
    return copy


@pytest.fixture(scope="module")
def built(checkout: Path) -> Path:
    """The folder with an sdist, and the wheel that was made of it."""
    folder = checkout.parent / "dist"
    uv("build", "--out-dir", folder, cwd=checkout)
    return folder


def test_the_source_tree_is_the_product() -> None:
    """Otherwise the comparisons below would compare nothing."""
    files = product(ROOT)
    assert {"pool/py.typed", "pool/_child/boot.py", "frontends/cli/main.py"} < files


def test_an_sdist_holds_the_product_and_no_tests(built: Path) -> None:
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {each.name.partition("/")[2] for each in archive.getmembers() if each.isfile()}
    metadata = {name for name in names if "egg-info/" in name}
    wanted = {"pyproject.toml", "README.md", "LICENSE", "PKG-INFO", "setup.cfg"}
    assert names - metadata == product(ROOT) | wanted


def test_a_wheel_of_the_sdist_holds_the_product_alone(built: Path) -> None:
    (path,) = built.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == {f"flashpool/{name}" for name in product(ROOT)}


def test_an_editable_install_links_the_product_file_by_file(checkout: Path) -> None:
    environment = checkout.parent / "venv"
    uv("venv", "--no-project", environment, cwd=checkout)
    python = environment / "bin" / "python"
    uv("pip", "install", "--no-deps", "--editable", ".", "--prefix", environment, cwd=checkout)
    where = (
        "import importlib.util as u; print(u.find_spec('flashpool').submodule_search_locations[0])"
    )
    told = subprocess.run(
        [python, "-I", "-c", where], stdout=subprocess.PIPE, text=True, check=True
    )
    installed = Path(told.stdout.strip())
    assert files_under(installed) == product(ROOT)
    for name in product(ROOT):
        assert (installed / name).resolve() == checkout / name
