"""Compiles, mends or checks the bytecode of an environment; run by the environment's own Python.

    python -I -S bytecode_program.py compile|mend|check ENVIRONMENT FINAL ENTRY... -> JSON

compile  every module of the entries (files and directories); existing bytecode is replaced if it
         is truncated, or another module's
mend     delete invalid files that Python would use as the bytecode of a module
check    only report such files

A file that does not compile (a template, code for another version) is not a failure, because it
cannot be imported either. A file that cannot be written is a failure, and ends the work: `error`
then holds the system's error number and message, and the path. Uses only the standard library, on
any Python from 3.8 on; `bytecode.py` starts it.
"""

from __future__ import annotations

import importlib.util
import json
import marshal
import os
import re
import sys
import types
from importlib.machinery import SourceFileLoader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

#: Suffix of unfinished files, which neither Python nor a seal reads: two processes may write at
#: once, and a killed process leaves its file.
UNFINISHED = ".flashpool-unfinished"
#: No module's bytecode is larger than this.
_MOST = 256 * 1024 * 1024
_CACHE = "__pycache__"
_OURS = re.compile(
    r"(.+)\.{}(\.opt-[12])?\.pyc".format(re.escape(sys.implementation.cache_tag or "")), re.DOTALL
)


def folders(entries: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield each directory with its modules; links are not followed."""
    single: dict[str, list[str]] = {}
    for entry in entries:
        if not os.path.isdir(entry):
            folder, name = os.path.split(entry)
            single.setdefault(folder, []).append(name)
            continue
        for folder, names, files in os.walk(entry):
            names[:] = [name for name in names if name != _CACHE]
            yield folder, [name for name in files if name.endswith(".py")]
    yield from single.items()


def compile_module(source: str, shown: str) -> None:
    """Write the bytecode of one module, completely or not at all."""
    target = importlib.util.cache_from_source(source, optimization="")
    try:
        with open(source, "rb") as file:
            status = os.fstat(file.fileno())
            data = file.read()
        code = SourceFileLoader("<flashpool>", source).source_to_code(data, shown)
        body = marshal.dumps(code)
    except Exception:  # noqa: BLE001 - a stranger's source may make the compiler raise anything
        _delete(target)
        return
    header = [0, int(status.st_mtime) & 0xFFFFFFFF, status.st_size & 0xFFFFFFFF]
    head = importlib.util.MAGIC_NUMBER + b"".join(n.to_bytes(4, "little") for n in header)
    if not _holds(target, head, code):
        write_whole(target, head + body)


def _holds(target: str, head: bytes, code: types.CodeType) -> bool:
    """Return whether the file already has this content.

    Rewriting an unchanged file could break another process's seal.
    """
    try:
        with open(target, "rb") as file:
            return file.read(len(head)) == head and marshal.loads(file.read(_MOST)) == code  # noqa: S302
    except (OSError, EOFError, ValueError, TypeError, MemoryError):
        return False


def write_whole(target: str, data: bytes) -> None:
    """Replace a file; on a full disk raise `OSError`, and leave no truncated file.

    `py_compile` of CPython before 3.12.8 and 3.13.1 treats a short write as complete.
    """
    os.makedirs(os.path.dirname(target), exist_ok=True)
    unfinished = f"{target}.{os.urandom(4).hex()}{UNFINISHED}"
    handle = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(handle, rest) :]
        finally:
            os.close(handle)  # some file systems report only here that they are full
        os.replace(unfinished, target)
    except OSError:
        _delete(unfinished)
        raise


def _delete(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def cached(folder: str) -> list[str]:
    """Return the bytecode files in a directory's cache."""
    try:
        return sorted(os.listdir(os.path.join(folder, _CACHE)))
    except (FileNotFoundError, NotADirectoryError):
        return []


def problems(folder: str) -> Iterator[tuple[str, str]]:
    """Yield bytecode of a directory that this Python would use or try to use, if invalid."""
    for name in cached(folder):
        found = _OURS.fullmatch(name)
        source = found and os.path.join(folder, found[1] + ".py")
        path = os.path.join(folder, _CACHE, name)
        if source and os.path.isfile(source) and os.path.isfile(path):
            wrong = what_is_wrong(path, source)
            if wrong:
                yield path, wrong


def what_is_wrong(path: str, source: str) -> str:
    """Return what is wrong with a bytecode file, compared with its source; empty if nothing is."""
    with open(path, "rb") as file:
        data = file.read(_MOST)
    if data[:4] != importlib.util.MAGIC_NUMBER:
        return "is not this Python's bytecode"
    if data[8:16] != _expected(data[4:8], source):
        return "does not match its source"
    try:
        code = marshal.loads(memoryview(data)[16:])  # noqa: S302 - as every import does
    except (EOFError, ValueError, TypeError, MemoryError):
        return "is cut"
    return "" if isinstance(code, types.CodeType) else "holds no code"


def _expected(flags: bytes, source: str) -> bytes:
    with open(source, "rb") as file:
        if flags[:1] in (b"\1", b"\3"):
            return importlib.util.source_hash(file.read())
        status = os.fstat(file.fileno())
    mtime, size = int(status.st_mtime) & 0xFFFFFFFF, status.st_size & 0xFFFFFFFF
    return mtime.to_bytes(4, "little") + size.to_bytes(4, "little")


def main(mode: str, environment: str, final: str, *entries: str) -> None:
    """Do the work, and report to stdout."""
    bad: list[tuple[str, str]] = []
    error = None
    try:
        for folder, modules in folders(list(entries)):
            if mode == "compile":
                for name in modules:
                    source = os.path.join(folder, name)
                    compile_module(source, final + source[len(environment) :])
                continue
            for path, wrong in problems(folder):
                bad.append((os.path.relpath(path, environment), wrong))
                if mode == "mend":
                    _delete(path)
    except OSError as failure:
        error = (failure.errno, failure.strerror, failure.filename)
    sys.stdout.write(json.dumps({"bad": bad, "error": error}))


if __name__ == "__main__":
    main(*sys.argv[1:])
