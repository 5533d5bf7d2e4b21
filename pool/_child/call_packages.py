"""Packages that a call installs while it runs: they go to the call's own directory.

    the call starts a program -> variables PYTHONPATH, PATH, FLASHPOOL_CALL_PACKAGES
    that program is pip       -> `for_children/pip`, which installs into the directory
    pip does not find that    -> PIP_CONFIG_FILE makes pip itself do so (``python -I``,
                                 ``--isolated``)
    the call imports          -> sys.path[0] is the directory

Calls share their environment, and all use the server's own: pip writes to neither. A call that
starts no program, and does not import pip, has no such directory.
"""

from __future__ import annotations

import os
import re
import sys
from binascii import crc32

from . import app_directory, call_files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from importlib.machinery import ModuleSpec
    from typing import Any

#: The folder in which child processes find flashpool's ``pip`` first.
_FRONT = os.path.dirname(os.path.abspath(__file__)) + "/for_children"
_INSTALLS = re.compile(rb"\b(pip[\d.]*|uv)\b")
_UV = "[pip]\ntarget = {target!r}\n"
#: pip's settings; because pip cannot read the record file, it uninstalls nothing.
_PIP = """[install]
target = {target}
upgrade = yes
[uninstall]
requirement = /dev/null/others-use-this-environment--name-packages-in-dependencies
"""
#: Options of other places to install into, which cannot be combined with a target.
_PLACES = ("user", "prefix", "root")
#: The variable that keeps the path of the user's own settings file of pip, if any.
_THEIR_PIP_SETTINGS = "FLASHPOOL_PIP_CONFIG_FILE"


def prepare() -> None:
    """Wrap the functions that start programs, so that programs of calls get these variables."""
    sys.meta_path.insert(0, ChildrenFinder())
    os.system = _telling(os.system)  # type: ignore[assignment]
    os.posix_spawn = _spawning(os.posix_spawn)
    os.posix_spawnp = _spawning(os.posix_spawnp)
    # Other functions of `os` that execute or start programs call these by their global names.
    os.execv = _executing(os.execv)
    os.execve = _executing(os.execve)
    if (there := sys.modules.get("_posixsubprocess")) is not None:
        # A module that `site` imported has loaded it. `subprocess` has its own reference.
        wrapped = _forking(there.fork_exec)
        there.fork_exec = wrapped  # type: ignore[attr-defined]
        if (subprocess := sys.modules.get("subprocess")) is not None:
            subprocess._fork_exec = wrapped  # type: ignore[attr-defined]


class ChildrenFinder:
    """Notices the import of modules with which a call starts programs, or runs pip itself."""

    def find_spec(
        self, name: str, _path: Sequence[str] | None = None, _target: object = None
    ) -> ModuleSpec | None:
        """Part of the import protocol (``sys.meta_path``)."""
        if name == "_posixsubprocess":
            return self._of_subprocess()
        if name == "pip":
            self._of_pip()
        return None

    def _of_subprocess(self) -> ModuleSpec | None:
        for finder in sys.meta_path:
            if finder is not self and (spec := finder.find_spec("_posixsubprocess", None)):
                break
        else:
            return None
        return type(sys.__spec__)(spec.name, _Wrapping(spec), origin=spec.origin)  # type: ignore[arg-type]

    def _of_pip(self) -> None:
        if not call_files.is_of_a_call():
            return
        os.environ.update(_variables(os.environ))
        from importlib.machinery import PathFinder

        from .for_children import bundled_pip

        if PathFinder.find_spec("pip") is None and (wheel := bundled_pip.wheel()) is not None:
            sys.path.append(wheel)


class _Wrapping:
    """Loads `_posixsubprocess`, and wraps its only function."""

    def __init__(self, spec: ModuleSpec) -> None:
        self.spec = spec

    def create_module(self, _spec: ModuleSpec) -> Any:
        """Return the module that the real loader creates."""
        assert self.spec.loader is not None
        return self.spec.loader.create_module(self.spec)

    def exec_module(self, module: Any) -> None:
        """Execute the module, and wrap its function."""
        assert self.spec.loader is not None
        self.spec.loader.exec_module(module)
        module.fork_exec = _forking(module.fork_exec)


def _forking(fork_exec: Callable[..., int]) -> Callable[..., int]:
    """Wrap ``fork_exec``, whose first six parameters are the same in all versions of Python."""

    def fork_exec_telling(
        arguments: Sequence[Any],
        files: Sequence[bytes],
        close: Any,
        keep: Any,
        cwd: Any,
        env: Any,
        *rest: Any,
    ) -> int:
        if call_files.is_of_a_call():
            try:
                files, env = _told(arguments, files, env)
            except OSError:
                pass  # no directory can be created, so nothing can be installed either
        return fork_exec(arguments, files, close, keep, cwd, env, *rest)

    return fork_exec_telling


def _told(
    arguments: Sequence[Any], files: Sequence[bytes], env: Sequence[bytes] | None
) -> tuple[Sequence[bytes], list[bytes]]:
    _note(b"\0".join(map(os.fsencode, arguments)))
    if env is None:
        known = {str(name): value for name, value in os.environ.items()}
    else:
        pairs = (one.partition(b"=") for one in env)
        known = {os.fsdecode(name): os.fsdecode(value) for name, _, value in pairs}
    variables = {**known, **_variables(known)}
    if len(files) > 1:  # the program is searched for on PATH
        files = [os.fsencode(f"{_directory()}/bin/") + os.path.basename(files[0]), *files]
    return files, [os.fsencode(f"{name}={value}") for name, value in variables.items()]


def _note(command: bytes) -> None:
    """If the command installs packages, make the call itself search the directory, too."""
    found = set(_INSTALLS.findall(command))
    if not found:
        return
    os.environ.update(_variables(os.environ))
    if b"uv" in found:
        file = f"{_directory()}.uv.toml"
        with open(file, "w", encoding="utf-8") as settings:
            settings.write(_UV.format(target=_directory()))
        os.environ["UV_CONFIG_FILE"] = file


def _telling(system: Callable[[Any], int]) -> Callable[[Any], int]:
    def system_telling(command: Any) -> int:
        if call_files.is_of_a_call():
            try:
                os.environ.update(_variables(os.environ))
                _note(os.fsencode(command))
            except OSError:
                pass
        return system(command)

    return system_telling


def _spawning(spawn: Callable[..., int]) -> Callable[..., int]:
    def spawn_telling(path: Any, argv: Any, env: Mapping[Any, Any] | None, **options: Any) -> int:
        if call_files.is_of_a_call():
            try:
                _note(b"\0".join(map(os.fsencode, argv)))
                # None, which `subprocess` passes since Python 3.13, means this process's
                # variables.
                given = os.environ if env is None else env
                known = {os.fsdecode(name): os.fsdecode(value) for name, value in given.items()}
                env = {**known, **_variables(known)}
            except OSError:
                pass
        return spawn(path, argv, env, **options)

    return spawn_telling


def _executing(execute: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap ``execv`` (with this process's variables) or ``execve`` (with variables as argument)."""

    def execute_telling(path: Any, argv: Any, *env: Mapping[Any, Any]) -> Any:
        if call_files.is_of_a_call():
            try:
                _note(b"\0".join(map(os.fsencode, argv)))
                if env:
                    known = {
                        os.fsdecode(name): os.fsdecode(value) for name, value in env[0].items()
                    }
                    env = ({**known, **_variables(known)},)
                else:
                    os.environ.update(_variables(os.environ))
            except OSError:
                pass
        return execute(path, argv, *env)

    return execute_telling


def _directory() -> str:
    """Return the directory; create it and put it on ``sys.path`` at the first request."""
    path = f"{call_files.directory()}/packages"
    if path not in sys.path:
        os.makedirs(path, exist_ok=True)
        # An app's own modules come before packages that it installs while it runs.
        sys.path.insert(1 if app_directory.is_first() else 0, path)
    return path


def _variables(known: Mapping[str, str]) -> dict[str, str]:
    """Return the variables to add to, or replace in, the environment of a program."""
    target = _directory()
    told = {
        "FLASHPOOL_CALL_PACKAGES": target,
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_ROOT_USER_ACTION": "ignore",
    }
    given = known.get("PIP_CONFIG_FILE")
    if given is not None and given.startswith(target):  # set by flashpool in a parent process
        given = known.get(_THEIR_PIP_SETTINGS)
    if given is not None:
        told[_THEIR_PIP_SETTINGS] = given
    told["PIP_CONFIG_FILE"] = _pip_settings(target, given)
    if "UV_CONFIG_FILE" in os.environ:
        told["UV_CONFIG_FILE"] = os.environ["UV_CONFIG_FILE"]
    for name, ours in (("PYTHONPATH", [target, _FRONT]), ("PATH", [f"{target}/bin"])):
        theirs = known.get(name, os.defpath if name == "PATH" else "").split(os.pathsep)
        told[name] = os.pathsep.join([*ours, *(one for one in theirs if one and one not in ours)])
    return told


def _pip_settings(target: str, theirs: str | None) -> str:
    """Write a settings file that makes pip install into the directory; keep the user's settings.

    An environment variable of pip could set the directory, but ``--isolated`` ignores it, and no
    variable prevents uninstalling.
    """
    path = f"{target}.pip.conf"
    if theirs is not None:
        path = f"{target}.pip-{crc32(os.fsencode(theirs)):x}.conf"
    if not os.path.exists(path):
        made = f"{path}.{os.urandom(4).hex()}"
        with open(made, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(_with_theirs(_PIP.format(target=target), _user_settings(theirs)))
        os.rename(made, path)
    return path


def _user_settings(given: str | None) -> list[str]:
    """Return the settings files that pip would read without flashpool's."""
    if given is not None:
        return [given]
    config = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return [os.path.expanduser(name) for name in ("~/.pip/pip.conf", f"{config}/pip/pip.conf")]


def _with_theirs(ours: str, files: list[str]) -> str:
    if not (there := [one for one in files if os.path.isfile(one)]):
        return ours
    from configparser import Error, RawConfigParser
    from io import StringIO

    settings, text = RawConfigParser(), StringIO()
    try:
        settings.read(there, encoding="utf-8")
    except (Error, UnicodeError, OSError):
        return ours  # pip itself would report the broken file
    for section in settings.sections():
        for place in _PLACES:
            settings.remove_option(section, place)
    settings.read_string(ours)
    settings.write(text)
    return text.getvalue()
