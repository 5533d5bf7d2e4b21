"""What a call installs, and the commands that it finds: those of its own environment."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from support.live import WORKER_ENV, Live, value


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package with a command."""
    path = tmp_path_factory.mktemp("wheels") / "parcel-1.0-py3-none-any.whl"
    info = "parcel-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("parcel.py", "V = 7\ndef main(): print('parcel runs', V)\n")
        file.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: parcel\nVersion: 1.0\n")
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        file.writestr(f"{info}/entry_points.txt", "[console_scripts]\nparcel = parcel:main\n")
        file.writestr(f"{info}/RECORD", "")
    return path


COMMANDS = """
import os, shutil, subprocess, sys
def f():
    say = "import sys, cloudpickle; print(sys.prefix)"
    there = [shutil.which(name) for name in ("python", "python3", "cloudpickle-none", "pytest")]
    ran = [
        subprocess.check_output([name, "-c", say], text=True).strip()
        for name in ("python", "python3", sys.executable)
    ]
    return there, ran, sys.executable, sys.prefix
"""


def test_python_and_console_scripts_are_those_of_the_base(live: Live) -> None:
    there, ran, executable, prefix = live.value(COMMANDS)
    folder = os.path.dirname(executable)
    assert there == [f"{folder}/python", f"{folder}/python3", None, f"{folder}/pytest"]
    assert ran == [prefix] * 3


def test_an_interpreter_without_those_names_has_them_all_the_same(
    make_live: Any, tmp_path: Path
) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "pyvenv.cfg").write_text(
        (Path(sys.prefix) / "pyvenv.cfg").read_text() if sys.prefix != sys.base_prefix else ""
    )
    (tmp_path / "bin" / "python-of-mine").symlink_to(os.path.realpath(sys.executable))
    live = make_live(base_python=str(tmp_path / "bin" / "python-of-mine"), slots=1).ready()
    code = """
import subprocess, sys
def f():
    say = "import sys; print(sys.executable)"
    ran = [subprocess.check_output([n, "-c", say], text=True).strip() for n in ("python", "python3")]
    return ran, sys.executable
"""
    ran, executable = live.value(code)
    assert ran == [executable] * 2


def test_pip_reads(live: Live) -> None:
    code = """
import subprocess, sys
def f():
    def out(*words):
        return subprocess.run(words, capture_output=True, text=True).stdout
    return out(sys.executable, "-m", "pip", "--version"), out("sh", "-c", "pip3 freeze")
"""
    version, frozen = value(live.start(code).wait(120))
    assert version.startswith("pip ")
    assert "cloudpickle==" in frozen


INSTALL = """
import os, shutil, subprocess, sys
def f(wheel, how):
    try:
        import parcel
        return "it was there"
    except ImportError:
        pass
    words = {
        "user": [sys.executable, "-m", "pip", "install", "--user", wheel],
        "environment": ["pip", "install", wheel],
        "system": f"pip install {wheel}",
        "import": ["install", wheel],
        "uv": ["uv", "pip", "install", "--offline", "--python", sys.executable, wheel],
    }[how]
    if how == "system":
        assert os.system(words) == 0
        told = ""
    elif how == "import":
        from pip._internal.cli.main import main
        assert main(words) == 0
        told = ""
    else:
        env = {"PATH": os.environ["PATH"]} if how == "environment" else None
        done = subprocess.run(words, capture_output=True, text=True, env=env)
        assert done.returncode == 0, done.stderr
        told = done.stderr
    import parcel
    say = "import parcel; print(parcel.V)"
    ran = [
        subprocess.check_output(words, text=True).strip()
        for words in (["python", "-c", say], ["parcel"], ["sh", "-c", "parcel"])
    ]
    return parcel.V, parcel.__file__, ran, told, sys.path[0] == os.path.dirname(parcel.__file__)
"""


@pytest.mark.parametrize("how", ["user", "environment", "system", "import", "uv"])
def test_what_a_call_installs_is_its_own(live: Live, wheel: Path, how: str) -> None:
    number, file, ran, told, first = value(live.start(INSTALL, str(wheel), how).wait(120))
    assert (number, first) == (7, True)
    assert ran == ["7", "parcel runs 7", "parcel runs 7"]
    if how in ("user", "environment"):
        assert "`dependencies`" in told
    live.until(lambda: not os.path.exists(os.path.dirname(os.path.dirname(file))))
    code = "import importlib.util\ndef f(): return importlib.util.find_spec('parcel') is None"
    assert live.value(code), "nothing of it is in the environment"
    here = subprocess.run([sys.executable, "-c", "import parcel"], check=False, capture_output=True)
    assert here.returncode == 1


def test_nothing_is_uninstalled_that_others_use(live: Live) -> None:
    code = """
import subprocess
def f():
    done = subprocess.run(["pip", "uninstall", "-y", "cloudpickle"], capture_output=True, text=True)
    import cloudpickle
    return done.returncode, done.stderr
"""
    status, told = live.value(code)
    assert status == 1
    assert "`dependencies`" in told


def test_a_call_that_starts_nothing_has_nothing_of_this(live: Live) -> None:
    code = """
import os, sys
def f():
    return dict(os.environ), [p for p in sys.path if p.endswith("/packages")], sys.modules["_flashpool.call_files"].is_made()
"""
    variables, path, made = live.value(code)
    assert (path, made) == ([], False)
    known = {*WORKER_ENV, "PATH"}
    assert not [n for n in variables if n.startswith(("PIP_", "UV_", "PYTHON")) and n not in known]
