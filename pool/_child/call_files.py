"""Files of a call while it runs: modules that it ships, its source, packages that it installs.

    guard, zygote: name() ---- fork ---> worker: directory() creates PLACE/NAME/PID-*
    zygote: the worker is dead ------------> remove_all_but(live workers)
    guard: the zygote's tree is gone ------> remove_all()
    supervisor: the guard was killed ------> removes `paths_of` the name that it gave them

A directory is created when code first asks for it. Its creation sets a byte of shared memory, so
that a zygote looks for directories to remove only if a worker has created one.
"""

from __future__ import annotations

import os

from . import trees

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection
    from ctypes import Array, c_ubyte

#: The directory of a zygote's calls; empty in a process that belongs to no zygote.
_name = ""
#: The zygote's session, until a worker has its own.
_session = 0
#: Bytes that a zygote shares with its workers; and the index of the byte that says that files
#: exist.
_marks: Array[c_ubyte] | None = None
_mark = 0
#: The call's directory, once it was created.
_directory = ""


def name(given: str) -> None:
    """Set the name of the directory that a guard, its zygote and its workers share."""
    global _name, _session
    _session = os.getsid(0)
    _name = given


def watch(marks: Array[c_ubyte], mark: int) -> None:
    """Have workers set this byte when they create files."""
    global _marks, _mark
    _marks, _mark = marks, mark


def _places(preferred: str | None = None) -> list[str]:
    """Return candidate directories to create files in; the first writable one is used."""
    if preferred is None:
        preferred = os.environ.get("TMPDIR", "")
    places = [preferred, "/tmp", "/var/tmp", "/dev/shm"]  # noqa: S108
    return [place for place in places if place.startswith("/")]


def paths_of(given: str, preferred: str | None = None) -> list[str]:
    """Return all possible directories of this name; ``preferred``: ``TMPDIR`` of the processes."""
    return [
        f"{place}/{one}" for place in _places(preferred) for one in (given, f"{given}-commands")
    ]


def directory() -> str:
    """Return the private directory of this process's call; create it at the first request.

    Raises:
        OSError: no directory for temporary files is writable.
    """
    global _directory
    if not _directory:
        _directory = _make() if _name else _make_alone()
    return _directory


def of_the_zygote(what: str) -> str:
    """Return a directory that lasts as long as the zygote; create it at the first request.

    Raises:
        OSError: no directory for temporary files is writable.
    """
    failure: OSError | None = None
    for place in _places():
        try:
            _make_base(f"{place}/{_name}-{what}")
            return f"{place}/{_name}-{what}"
        except OSError as error:
            failure = failure or error
    raise failure or FileNotFoundError("no directory for temporary files can be written")


def is_of_a_call() -> bool:
    """Return whether this process is a worker or its child: it has left the zygote's session."""
    return bool(_name) and os.getsid(0) != _session


def has_packages() -> bool:
    """Return whether the call has installed anything."""
    if not _directory:
        return False
    try:
        return bool(os.listdir(f"{_directory}/packages"))
    except OSError:
        return False


def is_made() -> bool:
    """Return whether the directory has been created."""
    return bool(_directory)


def holds(path: str) -> bool:
    """Return whether the path is inside the directory of this process's call."""
    return bool(_directory) and path.startswith(_directory)


def _make() -> str:
    failure: OSError | None = None
    for place in _places():
        try:
            return _make_in(f"{place}/{_name}")
        except OSError as error:
            failure = failure or error
    raise failure or FileNotFoundError("no directory for temporary files can be written")


def _make_in(base: str) -> str:
    # The session's id is the worker's pid, also in processes that the worker forked. Files of an
    # earlier worker with the same pid may still be being removed.
    number = os.getsid(0)
    own = f"{base}/{number}-{os.urandom(4).hex()}"
    while True:
        _make_base(base)
        if _marks is not None:
            _marks[_mark] = 1
        try:
            os.mkdir(own, 0o700)
        except FileNotFoundError:
            continue  # the zygote has removed the empty base directory meanwhile
        return own


def _make_base(base: str) -> None:
    try:
        os.mkdir(base, 0o700)
    except FileExistsError:
        if os.lstat(base).st_uid != os.geteuid():
            raise


def _make_alone() -> str:
    """Create the directory in a process without a zygote; remove it at exit."""
    import atexit
    import tempfile

    made = tempfile.mkdtemp(prefix="flashpool-")
    atexit.register(trees.remove, made)
    return made


def remove_all_but(workers: Collection[int]) -> None:
    """In a zygote: remove the files of calls whose workers are dead."""
    if _marks is None:
        return
    # Cleared before the directories are listed: a worker that creates files from now on sets it
    # again.
    _marks[_mark] = 0
    for place in _places():
        base = f"{place}/{_name}"
        try:
            names = os.listdir(base)
        except OSError:
            continue
        for one in names:
            number = one.partition("-")[0]
            # Calls may write here, too. A directory with any other name belongs to no live call.
            if not number.isdecimal() or int(number) not in workers:
                trees.remove(f"{base}/{one}")
        try:
            os.rmdir(base)
        except OSError:
            _marks[_mark] = 1  # files of running calls are left


def remove_all() -> None:
    """In a guard whose zygote is gone, with all below it: remove all files of calls."""
    for base in paths_of(_name):
        if os.path.isdir(base):
            trees.remove(base)
