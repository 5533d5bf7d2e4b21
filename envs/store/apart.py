"""Files on a volume that may hang: a process of its own opens each of them.

    read, reading    head PATH ---pipe---> here
    write, writing   here ---pipe---> dd of=PATH

Whoever has such a file open, and starts a process, waits for the volume: the new process closes
the file before it becomes another program, and that is a question to a file system in user space.
Until it has an answer the thread that forked stands still, which is the event loop's. A thread
that waits for the volume itself cannot be ended, either, and nor can its process. So where a
volume may hang no file of it is opened in this process.
"""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

__all__ = ["is_apart", "keep_apart", "make_file", "read", "reading", "write", "writing"]

_WRITE: Final = ("dd", "bs=1M", "iflag=fullblock", "status=none")
#: What a small file may take; the volume's watch is sooner to say that it hangs.
_LIMIT_S: Final = 60.0
_KNOWN: Final = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT)

_lock = threading.Lock()
_roots: set[str] = set()


def keep_apart(root: Path) -> None:
    """Files below this directory are not opened here from now on."""
    with _lock:
        _roots.add(str(root))


def is_apart(path: Path) -> bool:
    """Whether another process must open it."""
    text = str(path)
    with _lock:
        return any(text.startswith(f"{root}/") for root in _roots)


def make_file(path: Path) -> None:
    """An empty file, unless it is there; without opening it, wherever it is."""
    try:
        os.mknod(path, stat.S_IFREG | 0o666)
    except FileExistsError:
        pass


def read(path: Path, most: int) -> bytes:
    """Content of a regular file of limited size; OSError for all else."""
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode) or status.st_size > most:
        raise OSError(errno.EINVAL, "not a file of ours", str(path))
    return _run(["head", "-c", str(most), "--", str(path)], path)


def write(path: Path, data: bytes) -> None:
    """Make a file with this content."""
    _run([*_WRITE, f"of={path}"], path, data)


def _run(argv: list[str], path: Path, data: bytes | None = None) -> bytes:
    with _started(argv, stdin=subprocess.DEVNULL if data is None else subprocess.PIPE) as process:
        try:
            out, words = process.communicate(data, timeout=_LIMIT_S)
        except subprocess.TimeoutExpired:
            raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT), str(path)) from None
        _check(process.returncode, words, path)
        return out


@contextmanager
def reading(path: Path) -> Iterator[IO[bytes]]:
    """A stream of a file's content."""
    if not is_apart(path):
        with path.open("rb", buffering=0) as file:
            yield file
        return
    os.stat(path)
    with _started(["cat", "--", str(path)], stdin=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        yield process.stdout
        process.stdout.close()


@contextmanager
def writing(path: Path) -> Iterator[IO[bytes]]:
    """A stream into a new file, which is on the disk at the end of the block."""
    if not is_apart(path):
        with path.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        return
    with _started([*_WRITE, "conv=fsync", f"of={path}"], stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        try:
            yield process.stdin
        except BrokenPipeError:
            pass  # why, it says itself
        _, words = process.communicate()
        _check(process.returncode, words, path)


@contextmanager
def _started(argv: list[str], *, stdin: int) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        argv,
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
        cwd="/",
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.kill()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:
                    pass
        process.wait()


def _check(code: int, words: bytes, path: Path) -> None:
    if not code:
        return
    text = words.decode("utf-8", "replace").strip()
    for number in _KNOWN:
        if os.strerror(number) in text:
            raise OSError(number, os.strerror(number), str(path))
    raise OSError(errno.EIO, text or os.strerror(errno.EIO), str(path))
