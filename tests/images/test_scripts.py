"""Files that no test runs name existing targets, files and versions."""

import re
import subprocess
from pathlib import Path
from typing import Final

import pytest
import yaml

ROOT: Final = Path(__file__).parents[2]
WORKFLOWS: Final = sorted(ROOT.glob(".github/workflows/*.yml"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_use_existing_targets_and_files(path: Path) -> None:
    text = path.read_text("utf-8")
    assert yaml.safe_load(text)["jobs"]
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"^([a-z-]+(?: [a-z-]+)*):", makefile, re.MULTILINE))
    known = {name for names in targets for name in names.split()}
    for line in re.findall(r"make ([a-z][^\n)]*)", text):
        called = [word for word in line.split() if re.fullmatch(r"[a-z-]+", word)]
        assert called, line
        assert set(called) <= known, line
    for script in re.findall(r"(?:docker|frontends)/[\w/]+\.(?:sh|py)|docker/Dockerfile", text):
        assert (ROOT / script).exists(), script


def test_the_dockerfile_copies_existing_files_that_are_not_ignored() -> None:
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text("utf-8")
    kept = (ROOT / "docker" / "Dockerfile.dockerignore").read_text("utf-8").splitlines()
    for line in re.findall(r"^COPY (?!--from)(.*)$", dockerfile, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert f"!{source}" in kept, source


def test_the_version_of_uv_is_that_of_the_makefile() -> None:
    found = [
        re.search(r"UV_VERSION ?:?= ?([\d.]+)", (ROOT / name).read_text("utf-8"))
        for name in ("Makefile", "docker/Dockerfile")
    ]
    assert found[0]
    assert found[1]
    assert found[0][1] == found[1][1]


def test_images_contain_the_sdk_that_calls_get() -> None:
    from flashpool.frontends.settings.table import Settings

    dockerfile = (ROOT / "docker" / "Dockerfile").read_text("utf-8")
    arguments = dict(re.findall(r'^ARG (\w+)="([^"]*)"$', dockerfile, re.MULTILINE))
    (wanted,) = Settings.from_environ({}).calls_runpod
    assert arguments["CALLS_RUNPOD"] == wanted
    assert arguments["BASE_PACKAGES"].split() == ["numpy", wanted]
    for target, more in (("print-cpu-packages", 0), ("print-gpu-packages", 3)):
        told = subprocess.run(
            ["make", "-s", target], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
        )
        assert told.stdout.split()[:2] == ["numpy", wanted]
        assert len(told.stdout.split()) == 2 + more
