"""Records what imports do while they run, in a scout, which is discarded.

    import statements ------------> edges: which module needs which
    os.environ, getcwd, argv, ... -> reads: what a module read from its surroundings, and the value
    os.urandom, getpid, time -----> values that a module may keep, and that differ between processes
    open(.., "w"), mkdtemp -------> files that the import writes

This module replaces functions of the standard library permanently. Each event belongs to the
innermost module whose body runs at that moment.
"""

from __future__ import annotations

import builtins
import os
import sys

from ..renewal.importers import importing_module
from . import stand_ins

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

#: Follows a prefix: all variables whose names begin with the prefix.
ALL = "*"
#: Functions of global generators that return one number.
DRAWING = ("random", "uniform", "randint", "randrange", "getrandbits", "random_sample", "rand")
#: Files from which random bytes can be read.
_ENTROPY = ("/dev/urandom", "/dev/random")
#: Audit events, other than opening, of functions that create files; and which argument is the path.
_MAKES = {
    "sqlite3.connect": 0,
    "os.rename": 1,
    "os.link": 1,
    "os.symlink": 1,
}
_getcwd = os.getcwd


class Recorders:
    """All recorded events, by module."""

    def __init__(self, importing: Callable[[str], None], imported: Callable[[str], None]) -> None:
        #: Called with a module's name when its import begins, and when the import has ended.
        self.importing = importing
        self.imported = imported
        self._begun: set[str] = set()
        self.edges: dict[str, set[str]] = {}
        #: What each module read: ``env:NAME``, ``env:*``, ``cwd``, ``argv``, ``locale``,
        #: ``warnings``.
        self.reads: dict[str, dict[str, str | None]] = {}
        #: Random bytes that each module got from the operating system.
        self.draws: list[tuple[str, bytes]] = []
        #: Modules that read the process id; and the times that each module read.
        self.pid_readers: set[str] = set()
        self.times: dict[str, list[float]] = {}
        #: Numbers that each module drew from a global generator: function, arguments, result.
        self.numbers: list[tuple[str, str, tuple[Any, ...], Any]] = []
        #: Files that each module wrote, and directories that it created.
        self.written: list[tuple[str, str]] = []
        #: Temporary directories that imports created.
        self.made: list[str] = []
        #: Addresses that each module connected to.
        self.connected: list[tuple[str, str]] = []
        #: Environment variables that imports set, and by which module; later reads do not count.
        self.sets: dict[str, str] = {}
        self._quiet = False
        self._numpy_is_new = False

    def install(self) -> None:
        """Begin to record."""
        self._watch_imports()
        self._watch_environ()
        self._watch_surroundings()
        self._watch_identity()
        sys.addaudithook(self._audit)

    # The module that an event belongs to.

    def _read(self, what: str, value: str | None = None) -> None:
        module = importing_module()
        if module and not self._quiet:
            self.reads.setdefault(module, {}).setdefault(what, value)

    # Imports.

    def _watch_imports(self) -> None:
        import importlib

        original, by_name = builtins.__import__, importlib.import_module

        def importing(
            name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0
        ) -> Any:
            try:
                found = original(name, globals, locals, fromlist, level)
            except ImportError as error:
                if type(error.name) is str:
                    # If such a module exists elsewhere, the importing module would find it.
                    self._read(f"package:{error.name.partition('.')[0]}")
                raise
            target = name
            if level:
                package = str((globals or {}).get("__package__") or "")
                target = ".".join(filter(None, (package.rsplit(".", level - 1)[0], name)))
            parts = [f"{target}.{part}" for part in fromlist or () if part != "*"]
            self._needs(target, *parts)
            for one in self._begun.intersection((target, *parts)):
                self._begun.remove(one)
                self.imported(one)
            return found

        def import_module(name: str, package: str | None = None) -> Any:
            found = by_name(name, package)
            self._needs(found.__name__)
            return found

        builtins.__import__ = importing
        importlib.import_module = import_module
        sys.meta_path.insert(0, self)

    def find_spec(self, name: str, _path: object = None, _target: object = None) -> None:
        """Record the search for a module, and find nothing (``sys.meta_path``)."""
        self._watch_numpy()
        self._watch_numpy_drawing()
        self._begun.add(name)
        self.importing(name)
        self._needs(name)

    def _needs(self, *names: str) -> None:
        module = importing_module()
        if module:
            edges = self.edges.setdefault(module, set())
            for name in names:
                parts = name.split(".")
                edges.update(".".join(parts[: count + 1]) for count in range(len(parts)))

    # Variables.

    def _watch_environ(self) -> None:
        kind: Any = type(os.environ)
        get, set_, delete, iterate = (
            getattr(kind, name)
            for name in ("__getitem__", "__setitem__", "__delitem__", "__iter__")
        )

        def getitem(environ: Any, name: Any) -> Any:
            text = os.fsdecode(name) if isinstance(name, (str, bytes)) else ""
            if text not in self.sets:
                value = environ._data.get(os.fsencode(text))
                self._read(f"env:{text}", None if value is None else os.fsdecode(value))
            return get(environ, name)

        def setitem(environ: Any, name: Any, value: Any) -> None:
            set_(environ, name, value)
            self.sets.setdefault(os.fsdecode(name), importing_module())

        def delitem(environ: Any, name: Any) -> None:
            delete(environ, name)
            self.sets.setdefault(os.fsdecode(name), importing_module())

        def iterator(environ: Any) -> Any:
            module = importing_module()
            names = [stand_ins.Name(name) for name in iterate(environ)]
            for name in names:
                name.record = lambda prefix: self._read_all(module, prefix)
            yield from names
            if not any(name.asked for name in names):
                self._read_all(module, "")

        kind.__getitem__, kind.__setitem__, kind.__delitem__ = getitem, setitem, delitem
        kind.__iter__ = iterator

    def _read_all(self, module: str, prefix: str) -> None:
        """Record that a module read all variables whose names begin with the prefix."""
        if module:
            self.reads.setdefault(module, {}).setdefault(f"env:{prefix}{ALL}", None)

    # Other surroundings.

    def _watch_surroundings(self) -> None:
        import locale
        import warnings

        for name in ("getcwd", "getcwdb"):
            self._wrap(os, name, "cwd")
        for name in ("stat", "lstat", "listdir", "scandir", "access"):
            self._wrap(os, name, "cwd", relative=True)
        for name in ("setlocale", "localeconv", "getlocale", "getpreferredencoding"):
            self._wrap(locale, name, "locale")
        sys.argv = stand_ins.Argv(sys.argv, self._read)
        recorder: Any = stand_ins.EveryWarning(self._read)
        warnings.filters.insert(0, ("ignore", recorder, Warning, None, 0))  # type: ignore[attr-defined]
        warnings._filters_mutated() if hasattr(warnings, "_filters_mutated") else None

    def _wrap(self, module: Any, name: str, what: str, *, relative: bool = False) -> None:
        original = getattr(module, name)

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if not relative or _is_relative(args[0] if args else "."):
                self._read(what)
            return original(*args, **kwargs)

        recorded = stand_ins.Recorded(original, wrapper)
        setattr(module, name, recorded)
        for functions in (os.supports_fd, os.supports_dir_fd, os.supports_follow_symlinks):
            if original in functions:
                functions.add(recorded)

    def _audit(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = args
            if not isinstance(path, (str, bytes)):
                return
            path = os.fsdecode(path)
            if path in _ENTROPY:
                self.draws.append((importing_module(), b""))
            if _writes(mode, flags) and "__pycache__" not in path and not path.startswith("/dev/"):
                self._writes_to(path)
            elif _is_relative(path):
                self._read("cwd")
        elif event == "socket.connect":
            self.connected.append((importing_module(), str(args[1])))
        elif event == "tempfile.mkdtemp":
            self.made.append(os.fsdecode(args[0]))
            self._writes_to(self.made[-1])
        elif event in _MAKES and type(args[_MAKES[event]]) in (str, bytes):
            self._writes_to(os.fsdecode(args[_MAKES[event]]))

    def _writes_to(self, path: str) -> None:
        if not path.startswith(":"):  # else a database in memory
            self.written.append((importing_module(), os.path.join(_getcwd(), path)))

    # Values that differ between processes.

    def _watch_identity(self) -> None:
        import random
        import time

        urandom, getpid, clock = os.urandom, os.getpid, time.time

        def recorded_urandom(size: int) -> bytes:
            value = urandom(size)
            module = importing_module()
            if module and not self._quiet:
                self.draws.append((module, value))
            return value

        def recorded_getpid() -> int:
            self.pid_readers.add(importing_module())
            return getpid()

        def recorded_time() -> float:
            now = clock()
            self.times.setdefault(importing_module(), []).append(now)
            return now

        module_of: Any = os
        module_of.urandom = random._urandom = stand_ins.Recorded(urandom, recorded_urandom)  # type: ignore[attr-defined]
        module_of.getpid = stand_ins.Recorded(getpid, recorded_getpid)
        module_of = time
        module_of.time = stand_ins.Recorded(clock, recorded_time)
        self._watch_unrenewed(os, "getrandom")
        self._watch_generator(random, random._inst)

    def _watch_generator(self, module: Any, generator: object) -> None:
        """Watch all functions of a module that are methods of its global generator."""
        for name, function in list(vars(module).items()):
            if getattr(function, "__self__", None) is generator:
                self._watch_drawing(module, name)

    def _watch_unrenewed(self, module: Any, name: str) -> None:
        """Watch a function that returns random values which workers cannot renew."""
        original = getattr(module, name)

        def recorded(*args: Any, **kwargs: Any) -> Any:
            if (drawer := importing_module()) and not self._quiet:
                self.draws.append((drawer, b""))
            return original(*args, **kwargs)

        setattr(module, name, stand_ins.Recorded(original, recorded))

    def _watch_drawing(self, module: Any, name: str) -> None:
        """Watch a function of a global generator."""
        draw = getattr(module, name)

        def recorded(*args: Any, **kwargs: Any) -> Any:
            value = draw(*args, **kwargs)
            drawer = importing_module()
            self._read("random")
            if (
                drawer
                and name in DRAWING
                and not kwargs
                and all(type(arg) in (int, float) for arg in args)
            ):
                self.numbers.append((drawer, f"{module.__name__}.{name}", args, value))
            return value

        setattr(module, name, stand_ins.Recorded(draw, recorded))

    def _watch_numpy(self) -> None:
        """Do not record the seeds of NumPy's generators, as `randomness` renews the generators."""
        module: Any = sys.modules.get("numpy.random.bit_generator")
        randbits = getattr(module, "randbits", None)
        if randbits is None or getattr(randbits, "recorder", None) is self:
            return

        def quietly(bits: int) -> Any:
            self._quiet = True
            value = randbits(bits)
            self._quiet = False
            return value

        quietly.recorder = self  # type: ignore[attr-defined]
        module.randbits = quietly
        self._numpy_is_new = True

    def _watch_numpy_drawing(self) -> None:
        """Watch the functions of NumPy's global generator, once they exist."""
        module = sys.modules.get("numpy.random")
        if self._numpy_is_new and hasattr(module, "randint"):
            self._numpy_is_new = False
            self._watch_generator(module, sys.modules["numpy.random.mtrand"]._rand)


def _writes(mode: Any, flags: Any) -> bool:
    if isinstance(mode, str):
        return any(letter in mode for letter in "wax+")
    if not isinstance(flags, int) or flags & os.O_TMPFILE == os.O_TMPFILE:
        return False  # a file without a name leaves nothing
    return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def _is_relative(path: Any) -> bool:
    if path is None or isinstance(path, int):
        return path is None
    return not os.path.isabs(os.fsdecode(path))
