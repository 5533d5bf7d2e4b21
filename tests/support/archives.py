"""Archives that tests unpack: members, and a gzipped tar of them."""

import gzip
import io
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Final

#: Tar formats that common programs write.
FORMATS: Final = {
    "pax": tarfile.PAX_FORMAT,
    "gnu": tarfile.GNU_FORMAT,
    "ustar": tarfile.USTAR_FORMAT,
}


def file(name: str, content: bytes = b"", mode: int = 0o644) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = len(content), mode, 1_700_000_000
    return info, content


def folder(name: str) -> tuple[tarfile.TarInfo, bytes]:
    return special(name, tarfile.DIRTYPE)


def special(name: str, kind: bytes, leads_to: str = "") -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, leads_to, 0o755
    return info, b""


def tar(members: Iterable[tuple[tarfile.TarInfo, bytes]], kind: int = tarfile.PAX_FORMAT) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=kind) as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))
    return target.getvalue()


def write_archive(
    path: Path, members: Iterable[tuple[tarfile.TarInfo, bytes]], kind: int = tarfile.PAX_FORMAT
) -> Path:
    """Write `<name>.tar.gz` in one step, as an upload does that is renamed into place."""
    unfinished = path.with_name(path.name + ".part")
    unfinished.write_bytes(gzip.compress(tar(members, kind), compresslevel=1, mtime=0))
    unfinished.replace(path)
    return path
