"""Files on a volume that may hang: a process of its own opens each of them.

    reading          dd if=NAME ---pipe---> here
    write, writing   here ---pipe---> dd of=NAME

Whoever has such a file open, and starts a process, waits for the volume: the new process closes
the file before it becomes another program, and that is a question to a file system in user space.
Until it has an answer the thread that forked stands still, which is the event loop's. A thread
that waits for the volume itself cannot be ended, either, and nor can its process. So where a
volume may hang no file of it is opened in this process. Directories may be: to close one is no
question to anybody, and so the other process has a descriptor of the file's directory.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
import subprocess
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

__all__ = ["is_apart", "keep_apart", "make_file", "reading", "touch", "write", "writing"]

_COPY: Final = ("dd", "bs=1M", "status=none")
_READ: Final = (*_COPY, "iflag=fullblock,nofollow,nonblock")
_WRITE: Final = (*_COPY, "iflag=fullblock", "oflag=nofollow")
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


def make_file(path: str | Path, folder: int | None = None) -> None:
    """An empty file, unless it is there; without opening it, wherever it is."""
    try:
        os.mknod(path, stat.S_IFREG | 0o666, dir_fd=folder)
    except FileExistsError:
        pass


def touch(name: str, folder: int) -> None:
    """Put an empty new file in a file's place: only so its time is the file system's own."""
    beside = f".{name}.{secrets.token_hex(4)}"
    make_file(beside, folder)
    try:
        os.replace(beside, name, src_dir_fd=folder, dst_dir_fd=folder)
    except OSError:
        os.unlink(beside, dir_fd=folder)
        raise


@contextmanager
def reading(name: str, folder: int, most: int, path: Path) -> Iterator[IO[bytes]]:
    """A stream of a regular file's content; OSError where it is no such file, or larger.

    ``path`` is what errors name.
    """
    status = os.stat(name, dir_fd=folder, follow_symlinks=False)
    if not stat.S_ISREG(status.st_mode) or status.st_size > most:
        raise OSError(errno.EINVAL, "not a file of ours", str(path))
    argv = [*_READ, f"if={_named(name, folder)}"]
    with _started(argv, folder, stdin=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        yield process.stdout
        process.stdout.close()


def write(
    name: str, folder: int, pieces: Iterable[bytes | memoryview], mode: int, *, sync: bool
) -> None:
    """Make a file with this content."""
    argv = [*_WRITE, "conv=excl,fsync" if sync else "conv=excl", f"of={_named(name, folder)}"]
    with _started(argv, folder, stdin=subprocess.PIPE, mode=mode) as process:
        try:
            _, words = process.communicate(b"".join(pieces), timeout=_LIMIT_S)
        except subprocess.TimeoutExpired:
            raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT), name) from None
        _check(process.returncode, words, name)


@contextmanager
def writing(path: Path) -> Iterator[IO[bytes]]:
    """A stream into a new file, which is on the disk at the end of the block."""
    if not is_apart(path):
        with path.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        return
    argv = [*_WRITE, "conv=fsync", f"of={path}"]
    with _started(argv, None, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        try:
            yield process.stdin
        except BrokenPipeError:
            pass  # why, it says itself
        _, words = process.communicate()
        _check(process.returncode, words, str(path))


def _named(name: str, folder: int) -> str:
    """A path for a process that has the directory's descriptor."""
    return f"/proc/self/fd/{folder}/{name}"


@contextmanager
def _started(
    argv: list[str], folder: int | None, *, stdin: int, mode: int = 0o666
) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        argv,
        pass_fds=() if folder is None else (folder,),
        umask=0o666 & ~mode if mode != 0o666 else -1,
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


def _check(code: int, words: bytes, path: str) -> None:
    if not code:
        return
    text = words.decode("utf-8", "replace").strip()
    for number in _KNOWN:
        if os.strerror(number) in text:
            raise OSError(number, os.strerror(number), path)
    raise OSError(errno.EIO, text or os.strerror(errno.EIO), path)
