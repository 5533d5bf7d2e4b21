"""Packages that a call installs, and the commands it finds in its environment."""

import os
import platform
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from flashpool.envs.building.virtualenv import make_virtualenv
from flashpool.pool._child.for_children import bundled_pip
from support.live import WORKER_ENV, Live, value
from support.wants import missing


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a wheel of a package with a command."""
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


def test_python_is_found_under_all_names_whatever_the_interpreters(
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


def test_read_only_commands_of_pip_work(live: Live) -> None:
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
def test_packages_that_a_call_installs_are_its_own(live: Live, wheel: Path, how: str) -> None:
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


@pytest.fixture(scope="module")
def with_pip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter that has pip, and a package that may be uninstalled."""
    if (bundled := bundled_pip.wheel()) is None:
        raise missing("python3-venv", "this Python brings no pip")
    folder = tmp_path_factory.mktemp("with-pip") / "base"
    make_virtualenv(folder, Path(os.path.realpath(sys.executable)), platform.python_version())
    (folder / "pip.conf").unlink(missing_ok=True)  # the base was not created by flashpool
    (packages,) = folder.glob("lib/python3*/site-packages")
    with zipfile.ZipFile(bundled) as file:
        file.extractall(packages)
    (packages / "lodger.py").write_text("")
    info = packages / "lodger-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lodger\nVersion: 1.0\n")
    (info / "INSTALLER").write_text("pip\n")
    (info / "RECORD").write_text("lodger.py,,\nlodger-1.0.dist-info/METADATA,,\n")
    return folder / "bin" / "python"


def names_in(python: Path) -> list[str]:
    (packages,) = python.parent.parent.glob("lib/python3*/site-packages")
    return sorted(one.name for one in packages.iterdir())


AROUND = """
import os, subprocess, sys
PIP = [sys.executable, "-I", "-m", "pip"]
def f(how, words):
    if how == "in this process":
        from pip._internal.cli.main import main
        code = main(words)
    elif how == "execve":
        pid = os.fork()
        if pid == 0:
            os.execve(sys.executable, [*PIP, *words], {"PATH": os.environ["PATH"]})
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    elif how == "spawnv":
        code = os.spawnv(os.P_WAIT, sys.executable, [*PIP, *words])
    else:
        code = subprocess.run([*PIP, *words, *(["--isolated"] if how == "isolated" else [])]).returncode
    if words[0] == "uninstall":
        return code
    try:
        import parcel
        return code, parcel.V
    except ImportError:
        return code, None
"""
WAYS = ("a command", "isolated", "spawnv", "execve")


@pytest.mark.parametrize("how", WAYS)
def test_pip_in_isolated_mode_installs_for_the_call(
    make_live: Any, with_pip: Path, wheel: Path, how: str
) -> None:
    live = make_live(base_python=str(with_pip), slots=1).ready()
    before = names_in(with_pip)
    outcome = live.start(AROUND, how, ["install", "--no-index", str(wheel)]).wait(120)
    # The call does not see packages installed by processes other than its child programs.
    own = how in ("a command", "isolated")
    assert value(outcome) == (0, 7 if own else None), outcome.output.decode()
    assert names_in(with_pip) == before


@pytest.mark.parametrize("how", [*WAYS, "in this process"])
def test_pip_in_isolated_mode_uninstalls_nothing(make_live: Any, with_pip: Path, how: str) -> None:
    live = make_live(base_python=str(with_pip), slots=1).ready()
    before = names_in(with_pip)
    outcome = live.start(AROUND, how, ["uninstall", "--yes", "lodger"]).wait(120)
    assert value(outcome), "it failed"
    assert b"name-packages-in-dependencies" in outcome.output
    assert names_in(with_pip) == before


def test_pip_keeps_its_users_settings(make_live: Any, with_pip: Path, tmp_path: Path) -> None:
    (tmp_path / "pip").mkdir()
    (tmp_path / "pip" / "pip.conf").write_text(
        "[global]\nindex-url = http://index.invalid/%s\n[install]\nuser = yes\n"
    )
    given = tmp_path / "given.conf"
    given.write_text("[global]\nindex-url = http://other.invalid/\n")
    live = make_live(
        base_python=str(with_pip), worker_env={**WORKER_ENV, "XDG_CONFIG_HOME": str(tmp_path)}
    )
    code = """
import os, subprocess, sys
def f(given):
    def listed(**more):
        words = [sys.executable, "-I", "-m", "pip", "config", "list"]
        return subprocess.check_output(words, env={**os.environ, **more}, text=True)
    return listed(), listed(PIP_CONFIG_FILE=given), listed()
"""
    first, other, again = value(live.start(code, str(given)).wait(120))
    assert first == again
    assert "index-url='http://index.invalid/%s'" in first
    assert "index-url='http://other.invalid/'" in other
    for settings in (first, other):
        assert "install.target='" in settings
        assert "install.user" not in settings


def test_pip_without_options_does_not_change_a_built_environment(
    with_pip: Path, wheel: Path, tmp_path: Path
) -> None:
    python = tmp_path / "env" / "bin" / "python"
    make_virtualenv(tmp_path / "env", Path(os.path.realpath(with_pip)), platform.python_version())
    (packages,) = (tmp_path / "env").glob("lib/python3*/site-packages")
    (there,) = with_pip.parent.parent.glob("lib/python3*/site-packages")
    (packages / "base.pth").write_text(f"{there}\n")
    (packages / "lodger.py").write_text("")
    (there / "lodger-1.0.dist-info").rename(packages / "lodger-1.0.dist-info")
    before = names_in(python)
    try:
        for words in ["install", "--no-index", str(wheel)], ["uninstall", "--yes", "lodger"]:
            command = [str(python), "-I", "-m", "pip", *words, "--isolated"]
            done = subprocess.run(command, check=False, capture_output=True, text=True, env={})
            assert done.returncode
            assert "dependencies" in done.stderr
            assert names_in(python) == before
    finally:
        (packages / "lodger-1.0.dist-info").rename(there / "lodger-1.0.dist-info")


def test_shared_packages_are_not_uninstalled(live: Live) -> None:
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


def test_a_call_that_starts_no_program_needs_none_of_this(live: Live) -> None:
    code = """
import os, sys
def f():
    return dict(os.environ), [p for p in sys.path if p.endswith("/packages")], sys.modules["_flashpool.call_files"].is_made()
"""
    variables, path, made = live.value(code)
    assert (path, made) == ([], False)
    known = {*WORKER_ENV, "PATH"}
    assert not [n for n in variables if n.startswith(("PIP_", "UV_", "PYTHON")) and n not in known]
