"""Each page of the documentation that has steps, followed to the letter in an empty HOME."""

import shutil
import sys
from importlib import metadata
from pathlib import Path

import pytest
from envs.conftest import Index

from support import wants
from support.docs.following import Following, compare
from support.docs.pages import ROOT, Block, Page, all_pages
from support.nvml.scripted import ScriptedNvml

PAGES = {str(page.path.relative_to(ROOT)): page for page in all_pages() if page.is_followed}
#: Programs of the machine that a page's steps use.
PROGRAMS = {"docs/how-to/nginx.md": "nginx"}
#: A stand-in for torch: each operation returns the stand-in itself, and `item()` a number.
TORCH = {
    "__init__.py": """
class Anything:
    def __getattr__(self, name): return self
    def __call__(self, *args, **kwargs): return self
    def __iter__(self): return iter([self])
    def __matmul__(self, other): return self
    __rmatmul__ = __rmul__ = __isub__ = __matmul__
    def item(self): return 0.25
def __getattr__(name):
    if name.startswith("__"): raise AttributeError(name)
    return Anything()
def save(what, path): open(path, "w").close()
""",
    "nn/__init__.py": "from torch import Anything\nLinear = functional = Anything()\n",
    "nn/parallel.py": "from torch import Anything\nDistributedDataParallel = Anything()\n",
    "distributed/__init__.py": """
import os
def init_process_group(backend): pass
def destroy_process_group(): pass
def get_rank(): return int(os.environ["RANK"])
def get_world_size(): return int(os.environ["WORLD_SIZE"])
""",
    "distributed/run.py": """
import os, subprocess, sys
_, _, count, script = sys.argv
size = count.partition("=")[2]
assert len(os.environ["CUDA_VISIBLE_DEVICES"].split(",")) == int(size)
for rank in range(int(size)):
    env = {**os.environ, "RANK": str(rank), "WORLD_SIZE": size}
    subprocess.run([sys.executable, script], env=env, check=True)
""",
}
HUMANIZE = 'def naturalsize(number):\n    return f"{number / 1e6:.1f} MB"\n'


@pytest.fixture
def variables(tmp_path: Path) -> dict[str, str]:
    """An index with the packages that pages name, in place of PyPI."""
    index = Index(tmp_path / "index")
    index.folder.mkdir()
    for version in ("4.9.0", "4.12.3"):
        index.add("humanize", version, files={"__init__.py": HUMANIZE})
    index.add("torch", "2.9.1", files=TORCH)
    # What an artifact lacks. It brings the code of runpod-flash; the base has the rest.
    index.add("runpod-flash", "1.21.0")
    index.add("runpod", metadata.version("runpod"))
    index.add("python-multipart", "0.0.20")
    (tmp_path / "empty").mkdir()
    return {
        "FLASHPOOL_FIND_LINKS": str(index.folder),
        "FLASHPOOL_INDEX_URL": (tmp_path / "empty").as_uri(),
        "FLASHPOOL_ENV_MIN_FREE_MB": "0",
    }


def needs_notebooks() -> None:
    if not shutil.which("jupyter-execute", path=Path(sys.executable).parent):
        raise wants.missing("nbclient", "`make docs` installs it")


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * ("how-to" in name)) for name in PAGES]
)
def test_each_page_can_be_followed(
    name: str,
    tmp_path: Path,
    variables: dict[str, str],
    scripted: ScriptedNvml,
    request: pytest.FixtureRequest,
) -> None:
    links = {}
    if program := PROGRAMS.get(name):
        wants.program(program)
    if name == "docs/how-to/four-gpus.md":
        scripted.gpus(4)
        variables |= scripted.variables
    if any(block.mark == "cells" for block in PAGES[name].blocks):
        needs_notebooks()
    if name == "docs/how-to/deployed-app.md":
        client = request.getfixturevalue("client_python")
        links["client"] = client.parents[1]
    Following(PAGES[name], tmp_path / "reader", variables, links).go()


def test_output_is_compared_line_by_line() -> None:
    compare("a...c\n", "zero\nabbc\n")
    compare('..."x":1...\n..."y":2...\n', '{"y":2,"x":1}\n')
    with pytest.raises(AssertionError, match="does not print 'b'"):
        compare("a\nb\n", "b\na\n")


def test_a_step_that_fails_names_its_line(tmp_path: Path) -> None:
    page = next(iter(PAGES.values()))
    failing = Block(line=7, language="sh", text="false\n", mark="step", about="")
    broken = Page(path=page.path, prose=[], blocks=[failing])
    with pytest.raises(AssertionError, match=rf"{page.path.name}:7: exits with 1"):
        Following(broken, tmp_path / "reader", {}).go()
