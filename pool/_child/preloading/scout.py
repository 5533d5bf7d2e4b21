"""Imports modules in a process that is discarded, and reports what preloading them would do.

    planner --fork--> scout: recorders, then package by package: compare, import, compare
       ^                                                         |
       '--- Findings <-- memory file, a line for each fact <-----'

A module may be preloaded if its import only creates modules, of which forks get copies. A module is
not preloaded if its import creates resources that forks share (`process_state`), prints, writes
files, or keeps values that must differ between processes and cannot be renewed (`randomness`), or
if it needs such a module. The scout reports what an import read from its surroundings: a call that
changes any of that runs without preloading.

The scout exits after the imports. If it crashes, its file shows which import it had reached.
"""

from __future__ import annotations

import importlib
import os
import sys

# Bound here: imports may replace it in `json`.
from json import dumps

from .. import forking, processes, trees
from ..renewal import drawn_values, randomness
from ..renewal.deferred_starts import DeferredStarts
from . import process_state
from .recorders import Recorders

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

#: The original: `recorders` replaces `os.getpid`.
_getpid = os.getpid
#: Most characters of an import's output that a reason repeats.
_SHOWN = 100
_WHY = 500


def send(names: list[str], tell: Callable[[str], None]) -> list[bytes]:
    """Run a scout, and return the facts that it recorded, even if it crashed.

    ``tell``: see `planner.plan`.
    """
    fd = os.memfd_create("flashpool-scout")
    pid = forking.fork()
    if pid == 0:
        scout = _Scout(fd, tell)
        try:
            scout.run(names)
        except BaseException as error:
            sys.excepthook(*sys.exc_info())
            scout.note("failure", f"{type(error).__name__}: {error}"[:_WHY])
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    processes.kill_descendants()  # processes that its imports may have started
    with open(fd, "rb") as file:
        file.seek(0)
        return file.read().splitlines()


class _Scout:
    """A scout, in its process."""

    def __init__(self, fd: int, tell: Callable[[str], None]) -> None:
        self.fd = fd
        self.pid = _getpid()
        self.tell = tell
        self.recorders = Recorders(self.importing, self.imported)
        self.unfit: set[str] = set()

    def note(self, *fact: object) -> None:
        """Write a fact, immediately, because the next import may crash this process."""
        if _getpid() != self.pid:
            os._exit(0)  # an import forked, and this is the child
        os.write(self.fd, dumps(fact).encode() + b"\n")

    def importing(self, name: str) -> None:
        """Note that the import of a module begins, and which modules wait for it."""
        frame: Any = sys._getframe(1)
        importers = []
        while frame is not None:
            if frame.f_code.co_name == "<module>":
                importers.append(str(frame.f_globals.get("__name__")))
            frame = frame.f_back
        self.note("importing", name, importers)

    def imported(self, name: str) -> None:
        """Note that the import of a module has ended."""
        self.note("imported", name)

    def reject(self, name: str, why: str) -> None:
        if name and name not in self.unfit:
            self.unfit.add(name)
            self.note("unfit", name, why[:_WHY])

    def run(self, names: list[str]) -> None:
        """Import all modules, package by package."""
        sys.dont_write_bytecode = True  # else Python writes files, which imports are blamed for
        known = set(sys.modules)
        with randomness.Makers() as makers, DeferredStarts():
            self.recorders.install()
            for package, members in _packages(names):
                self.tell(members[0])
                self.look_at(package, members)
        self.settle([name for name in sys.modules if name not in known])
        self.try_renewals(makers)
        self.clean_up()
        self.note("home")

    def clean_up(self) -> None:
        """Remove the temporary directories that imports created: their exit hooks do not run."""
        for directory in self.recorders.made:
            trees.remove(directory)

    def try_renewals(self, makers: randomness.Makers) -> None:
        """Check whether workers could renew all generators: a subclass may refuse."""
        for name in makers.hidden():
            self.reject(name, "it keeps a sequence of random seeds, which a call cannot renew")
        for one in makers.generators():
            if one.drawn is None:
                self.reject(one.maker, "it gives a random generator another state")
                continue
            try:
                randomness.Held([one], ()).renew(None)
            except Exception as error:
                self.reject(one.maker, f"its random generator cannot be renewed: {error!r}")

    def look_at(self, package: str, members: list[str]) -> None:
        """Import the modules of one package, and record the effects."""
        before, known = process_state.ProcessState(), set(sys.modules)
        with _CapturedOutput() as output:
            for name in members:
                try:
                    importlib.import_module(name)
                except BaseException as error:
                    self.reject(name, f"{type(error).__name__}: {error}")
        said = output.text()
        why = process_state.difference(before)
        if said and why is None:
            why = f"it prints when it is imported: {said.strip()[:_SHOWN]!r}"
        if why is not None:
            # Reject also packages that this package imported for the first time: they may be the
            # cause.
            for name in {one.partition(".")[0] for one in set(sys.modules) - known} | {package}:
                self.reject(name, why)

    def settle(self, new: list[str]) -> None:
        """Record facts that are known only after all imports."""
        recorders = self.recorders
        for module, path in recorders.written:
            # Check, because creating a temporary file without a name opens its directory.
            if os.path.isfile(path) or path in recorders.made:
                self.reject(module, f"it writes a file when it is imported: {path}")
        for module, address in recorders.connected:
            self.reject(module, f"it connects to {address} when it is imported")
        for place in self.places(new):
            # A class may override access to its attributes.
            self.note("importing", place.owner, [])
            try:
                randomness.Held([], [place]).renew(None)
            except Exception as error:
                self.reject(place.owner, f"{'.'.join(place.path)} cannot be renewed: {error!r}")
            self.note("place", *place)
        for name, needed in recorders.edges.items():
            self.note("edges", name, sorted(needed))
        for variable, name in recorders.sets.items():
            recorders.reads.setdefault(name, {})[f"set:{variable}"] = None
        for name, facts in recorders.reads.items():
            self.note("reads", name, facts)

    def places(self, new: list[str]) -> list[drawn_values.Place]:
        """Return where the new modules keep values that must differ between processes."""
        recorders = self.recorders
        places, lost = drawn_values.find(recorders.draws, new)
        for name in lost:
            why = "it keeps random bytes from its import where no call can have its own"
            self.reject(name, why)
        for name in recorders.pid_readers.intersection(new):
            places += drawn_values.find_numbers("pid", [self.pid], name)
            places += drawn_values.find_texts(self.pid, name)
        for name in recorders.times.keys() & set(new):
            places += drawn_values.find_numbers("time", recorders.times[name], name)
        return places + drawn_values.find_drawn(recorders.numbers)


def _packages(names: list[str]) -> list[tuple[str, list[str]]]:
    """Group modules by package, needed packages first: that is the order in which imports ended.

    The standard library comes first, so that packages are not blamed for its effects.
    """
    groups: dict[str, list[str]] = {}
    ended: dict[str, int] = {}
    for index, name in enumerate(names):
        package = name.partition(".")[0]
        groups.setdefault(package, []).append(name)
        if name == package or package not in groups[package]:
            ended[package] = index
    order = sorted(groups, key=lambda one: (one not in sys.stdlib_module_names, ended[one]))
    return [(package, groups[package]) for package in order]


class _CapturedOutput:
    """Captures output of Python and C code during an import."""

    def __enter__(self) -> _CapturedOutput:
        self.file = os.memfd_create("flashpool-output")
        self.saved = [(fd, os.dup(fd)) for fd in (1, 2)]
        for fd, _ in self.saved:
            os.dup2(self.file, fd)
        return self

    def __exit__(self, *_exc: object) -> None:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except Exception:
                pass  # an import replaced the stream by an object that cannot be flushed
        processes.flush_c_streams()
        for fd, saved in self.saved:
            os.dup2(saved, fd)
            os.close(saved)

    def text(self) -> str:
        """Return the captured text, up to the length that a reason may have."""
        text = os.pread(self.file, 4 * _SHOWN, 0).decode("utf-8", "replace")
        os.close(self.file)
        return text
