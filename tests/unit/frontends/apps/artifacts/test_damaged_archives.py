"""Archives changed at random: each yields an app or one of flashpool's errors."""

import gzip
import os
import shutil
import tempfile
import threading
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from flashpool.frontends.apps.artifacts.app_store import AppStore
from flashpool.frontends.apps.artifacts.tar_reader import ArchiveLimits
from flashpool.frontends.apps.artifacts.unpacking import unpack
from flashpool.frontends.apps.errors import ArtifactIncomplete, ArtifactRefused
from support.archives import FORMATS, file, folder, tar

LIMITS = ArchiveLimits(max_mb=8, max_files=50, max_ratio=100)
LONG = "long/" + "n" * 120
MEMBERS = [
    folder("./"),
    file("./a.py", b"A" * 700),
    folder("b"),
    file("b/c", b""),
    file(LONG, b"x"),
]
TARS = [tar(MEMBERS, kind) for name, kind in FORMATS.items() if name != "ustar"]


def with_right_checksums(data: bytes) -> bytes:
    """Correct the checksums of changed headers, because a wrong checksum alone is refused."""
    blocks = [bytearray(data[at : at + 512]) for at in range(0, len(data), 512)]
    for block in blocks:
        if b"ustar" in block and len(block) == 512:
            block[148:156] = b" " * 8
            block[148:156] = b"%06o\0 " % sum(block)
    return b"".join(blocks)


@given(
    st.sampled_from(TARS),
    st.lists(st.tuples(st.floats(0, 0.999), st.binary(min_size=1, max_size=12)), max_size=4),
    st.booleans(),
)
def test_random_changes_yield_an_app_or_a_known_error(
    data: bytes, changes: list[tuple[float, bytes]], mend: bool
) -> None:
    changed = bytearray(data.rstrip(b"\0") + bytes(1024))
    for place, new in changes:
        at = int(place * (len(changed) - len(new)))
        changed[at : at + len(new)] = new
    root = Path(tempfile.mkdtemp())
    try:
        archive = root / "a.tar.gz"
        packed = with_right_checksums(bytes(changed)) if mend else bytes(changed)
        archive.write_bytes(gzip.compress(packed, compresslevel=1))
        try:
            lease = unpack(archive, AppStore(root / "apps"), LIMITS, threading.Event())
        except (ArtifactIncomplete, ArtifactRefused):
            left = os.listdir(root / "apps")
            assert not [name for name in left if not name.startswith(".")]
        else:
            assert not [path for path in lease.path.rglob("*") if path.is_symlink()]
            lease.release()
        assert sorted(os.listdir(root)) == ["a.tar.gz", "apps"]
    finally:
        shutil.rmtree(root)
