"""Advice for mistakes in a request: a module's name for a package's, or the wrong Python."""

import asyncio
import io
import os
import re
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flashpool.envs import (
    BuildFailed,
    Environments,
    InterpreterMissing,
    ResolutionFailed,
    Spec,
    import_names,
)
from support.interpreters import another_python

Run = Callable[[Any], Any]


def failing(setup: Any, run: Run, *requirements: str, **rest: Any) -> Any:
    async def main() -> None:
        async with Environments(setup.settings()) as environments:
            spec = Spec(requirements=requirements, **rest)
            first = await asyncio.gather(environments.acquire(spec), return_exceptions=True)
            with pytest.raises(type(first[0])) as caught:
                await environments.acquire(spec)
            assert str(caught.value) == str(first[0])
            with pytest.raises(type(first[0])) as caught:
                await environments.explain(spec)
            assert caught.value.advice == first[0].advice
            raise first[0]

    with pytest.raises((ResolutionFailed, BuildFailed)) as caught:
        run(main())
    return caught.value


@pytest.mark.parametrize(
    ("asked", "package"),
    [
        ("cv2", "opencv-python-headless (or opencv-python)"),
        ("PIL>=9", "pillow"),
        ("yaml[c]", "PyYAML"),
        ("google.protobuf", "protobuf"),
        ("docx>=9", "python-docx"),
        ("sklearn ; python_version > '3'", "scikit-learn"),
        ("pkg_resources", "setuptools<82"),
    ],
)
def test_a_modules_name_gets_the_package_as_advice(
    asked: str, package: str, setup: Any, run: Run
) -> None:
    setup.base.index.add("docx", "0.2")  # a different package has this name
    failure = failing(setup, run, "alpha", asked)
    assert isinstance(failure, ResolutionFailed)
    assert "docx" in asked or "The package index has no " in failure.what
    assert f"the package that provides it is {package}." in failure.advice
    module = re.split(r"[\[>; ]", asked)[0]
    assert failure.advice.startswith(f"{module} is the name of a module")


def test_a_module_of_python_needs_no_package(setup: Any, run: Run) -> None:
    assert "json is part of Python" in failing(setup, run, "json").advice


def test_an_unknown_name_is_reported(setup: Any, run: Run) -> None:
    failure = failing(setup, run, "no-such-thing")
    assert "check the spelling" in failure.advice
    assert failure.what == "The package index has no package 'no-such-thing'"


def test_a_missing_version_gets_the_advice_to_change_it(setup: Any, run: Run) -> None:
    failure = failing(setup, run, "alpha>=9")
    assert "change the versions" in failure.advice


def test_another_package_of_a_modules_name_is_warned_of(setup: Any, run: Run) -> None:
    """The package is still installed, because the user may have meant it."""
    for name in ("serial", "bs4"):
        setup.base.index.add(name, "1.0")

    async def main() -> None:
        async with Environments(setup.settings()) as environments:
            lines: list[str] = []
            spec = Spec(requirements=("serial", "bs4"))
            with await environments.acquire(spec, progress=lines.append):
                warnings = [line for line in lines if line.startswith("warning: ")]
                (warning,) = warnings
                assert "`serial` in `dependencies` is not what `import serial` needs" in warning
                assert warning.endswith("the package that provides it is pyserial")

    run(main())


@pytest.mark.parametrize("layered", [False, True])
def test_an_unknown_extra_is_warned_of(layered: bool, setup: Any, run: Run) -> None:
    if layered:
        setup.base.install("alpha")

    async def main() -> None:
        async with Environments(setup.settings()) as environments:
            lines: list[str] = []
            for name, version in (("beta", "1.0"), ("alpha", "2.0")):
                spec = Spec(requirements=(f"{name}[nosuch]",))
                with await environments.acquire(spec, progress=lines.append):
                    said = f"The package `{name}=={version}` does not have an extra named `nosuch`"
                    assert lines.count(f"warning: {said}") == 1

    run(main())


def another(setup: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """Another installed version of Python, and the base's version."""
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    argv = [str(setup.base.python), "-c", code]
    now = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()
    version, path = another_python()
    if version == "3.14":
        pytest.skip("the other Python is one that nobody is advised to ask for")
    folder = setup.volume.parent / "other-python"
    folder.mkdir()
    (folder / f"python{version}").symlink_to(path.resolve())
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return version, now


def needing(setup: Any, name: str, version: str, python: str) -> None:
    """Build a wheel that requires one version of Python."""
    wheel = setup.base.index.add(name, version, files={"x.py": ""})
    tag = "cp" + python.replace(".", "")
    wheel.rename(wheel.with_name(f"{name}-{version}-{tag}-{tag}-manylinux2014_x86_64.whl"))


def test_the_error_names_the_python_that_a_package_needs(
    setup: Any, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, now = another(setup, monkeypatch)
    needing(setup, "picky", "1.0", other)
    failure = failing(setup, run, "picky", "alpha")
    assert isinstance(failure, ResolutionFailed)
    assert failure.advice.startswith(f'set python_version to "{other}"')
    assert f"not on Python {now}" in failure.advice


def test_the_error_says_when_the_needed_python_is_not_installed(
    setup: Any, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _, now = another(setup, monkeypatch)
    other = "3.13" if now != "3.13" else "3.12"
    needing(setup, "picky", "1.0", other)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(
        "flashpool.envs.acquiring.environment_choice.find_interpreter", _finds_nothing
    )
    advice = failing(setup, run, "picky").advice
    assert f'"{other}"' in advice
    assert "FLASHPOOL_PYTHON_DOWNLOADS=1" in advice


async def _finds_nothing(version: str, *_: Any) -> Any:
    raise InterpreterMissing(f"no {version}")


def test_a_package_for_an_unsupported_python_keeps_its_general_advice(setup: Any, run: Run) -> None:
    needing(setup, "picky", "1.0", "3.6")
    assert "python_version" not in failing(setup, run, "picky").advice


def test_a_failed_source_build_suggests_a_python_with_a_wheel(
    setup: Any, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An old release has wheels for old Pythons only; on others uv tries to build it."""
    other, _ = another(setup, monkeypatch)
    needing(setup, "picky", "1.0", other)
    own = "def build_wheel(*a, **k): raise SystemExit('the answer is no')\n"
    texts = {
        "PKG-INFO": "Metadata-Version: 2.2\nName: picky\nVersion: 1.0\n",
        "own.py": own,
        "pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "own"\n'
        'backend-path = ["."]\n[project]\nname = "picky"\nversion = "1.0"\n',
    }
    with tarfile.open(setup.base.index.folder / "picky-1.0.tar.gz", "w:gz") as archive:
        for name, text in texts.items():
            entry = tarfile.TarInfo(f"picky-1.0/{name}")
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))

    async def main() -> None:
        async with Environments(setup.settings()) as environments:
            await environments.acquire(Spec(requirements=("picky",)))

    with pytest.raises(BuildFailed, match="the answer is no") as caught:
        run(main())
    assert caught.value.advice.startswith(f'set python_version to "{other}"')


def test_the_table_of_modules_is_consistent() -> None:
    assert import_names.providers_of("google.cloud.storage.blob") == ("google-cloud-storage",)
    assert import_names.providers_of("google.protobuf") == ("protobuf",)
    assert import_names.providers_of("numpy") == ()
    assert not import_names.is_another_package("psycopg2")
    assert not import_names.is_another_package("pyyaml")
    assert import_names.is_another_package("Google_Protobuf")
    for module in "sklearn bs4 dotenv dateutil jwt Crypto attr serial git OpenSSL skimage".split():
        assert import_names.providers_of(module)
    for module in "fitz docx pptx magic zmq usb discord telegram faiss MySQLdb yaml".split():
        assert import_names.providers_of(module)
