"""A FUSE file system that shows a directory; told "hang", it answers nothing until "go on".

python passthrough.py DIRECTORY MOUNTPOINT     words on stdin, each repeated when it is done
"""

import errno
import os
import sys
import threading
from typing import Any

import mfusepy


class Passthrough(mfusepy.Operations):  # type: ignore[misc]
    """Each operation waits until the file system answers, then does the same in the directory."""

    use_ns = True

    def __init__(self, directory: str, answers: threading.Event) -> None:
        self._directory = directory
        self._answers = answers

    def _real(self, path: str) -> str:
        self._answers.wait()
        return self._directory + path

    def init(self, path: str) -> None:
        print("mounted", flush=True)

    def access(self, path: str, amode: int) -> int:
        if not os.access(self._real(path), amode):
            raise mfusepy.FuseOSError(errno.EACCES)
        return 0

    def chmod(self, path: str, mode: int) -> int:
        os.chmod(self._real(path), mode)
        return 0

    def chown(self, path: str, uid: int, gid: int) -> int:
        os.lchown(self._real(path), uid, gid)
        return 0

    def create(self, path: str, mode: int, fi: Any = None) -> int:
        return os.open(self._real(path), os.O_RDWR | os.O_CREAT | os.O_TRUNC, mode)

    def flush(self, path: str, fh: int) -> int:
        self._answers.wait()
        return 0

    def fsync(self, path: str, datasync: int, fh: int) -> int:
        self._answers.wait()
        os.fsync(fh)
        return 0

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        status = os.lstat(self._real(path))
        names = ("st_mode", "st_nlink", "st_size", "st_uid", "st_gid", "st_ino", "st_blocks")
        times = {
            f"st_{time}": getattr(status, f"st_{time}_ns") for time in ("atime", "mtime", "ctime")
        }
        return {**{name: getattr(status, name) for name in names}, **times}

    def getxattr(self, path: str, name: str, position: int = 0) -> bytes:
        raise mfusepy.FuseOSError(errno.ENODATA)

    def listxattr(self, path: str) -> list[str]:
        return []

    def link(self, target: str, source: str) -> int:
        os.link(self._real(source), self._real(target))
        return 0

    def mkdir(self, path: str, mode: int) -> int:
        os.mkdir(self._real(path), mode)
        return 0

    def open(self, path: str, flags: int) -> int:
        return os.open(self._real(path), flags)

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        self._answers.wait()
        return os.pread(fh, size, offset)

    def readdir(self, path: str, fh: int) -> list[str]:
        return [".", "..", *os.listdir(self._real(path))]

    def readlink(self, path: str) -> str:
        return os.readlink(self._real(path))

    def release(self, path: str, fh: int) -> int:
        os.close(fh)
        return 0

    def rename(self, old: str, new: str) -> int:
        os.rename(self._real(old), self._real(new))
        return 0

    def rmdir(self, path: str) -> int:
        os.rmdir(self._real(path))
        return 0

    def statfs(self, path: str) -> dict[str, int]:
        found = os.statvfs(self._real(path))
        names = (
            "bavail",
            "bfree",
            "blocks",
            "bsize",
            "favail",
            "ffree",
            "files",
            "frsize",
            "namemax",
        )
        return {f"f_{name}": getattr(found, f"f_{name}") for name in names}

    def symlink(self, target: str, source: str) -> int:
        os.symlink(source, self._real(target))
        return 0

    def truncate(self, path: str, length: int, fh: int | None = None) -> int:
        os.truncate(self._real(path), length)
        return 0

    def unlink(self, path: str) -> int:
        os.unlink(self._real(path))
        return 0

    def utimens(self, path: str, times: tuple[int, int] | None = None) -> int:
        given = None if times is None else (int(times[0]), int(times[1]))
        os.utime(self._real(path), ns=given, follow_symlinks=False)  # type: ignore[arg-type]
        return 0

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        self._answers.wait()
        return os.pwrite(fh, data, offset)


def listen(answers: threading.Event) -> None:
    for line in sys.stdin:
        word = line.strip()
        (answers.clear if word == "hang" else answers.set)()
        print(word, flush=True)
    os._exit(0)


if __name__ == "__main__":
    answering = threading.Event()
    answering.set()
    threading.Thread(target=listen, args=(answering,), daemon=True).start()
    mfusepy.FUSE(Passthrough(sys.argv[1], answering), sys.argv[2], foreground=True)
