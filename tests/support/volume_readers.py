"""Every reader of a volume's files and names, fed with bytes, raises only typed errors.

bytes --first one chooses--> a reader: bytes into a file, a link or a name, and read as a pod does
                               `-- OSError, EnvironmentFailure: typed; anything else is a fault

hypothesis                tests/envs/test_fuzzing.py
atheris, where it is      python volume_readers.py FOLDER [options of libFuzzer]
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

import zstandard

from flashpool.envs.archives import archive
from flashpool.envs.archives.extraction import Promise, extract
from flashpool.envs.errors import EnvironmentFailure
from flashpool.envs.resolving.memo import StoredMemo
from flashpool.envs.settings import EnvSettings
from flashpool.envs.store import manifest
from flashpool.envs.store.claims import Claims
from flashpool.envs.store.eviction import Evictor, StoreLimits, evict_archives, sweep
from flashpool.envs.store.layout import Store, remove_tree
from flashpool.envs.store.lease_files import LeaseTable, Marks
from flashpool.envs.store.liveness import Liveness, parse_holder
from flashpool.envs.store.preloads import read_preloads
from flashpool.frontends import instance_files
from flashpool.frontends.qb.outbox import JobReport, Outbox
from flashpool.frontends.qb.paths import report_key
from flashpool.frontends.qb.spill import Spill
from flashpool.frontends.settings.table import Settings
from flashpool.pool.calls import Outcome

A: Final = "a" * 40
B: Final = "b" * 40
KEY: Final = b"key"
_FOLDERS: Final = (
    "holders",
    "scratch",
    "claims",
    "trash",
    "requests",
    "preloads",
    "envs",
    "archives",
)
_REPORT: Final = JobReport(job_id="job", body=b"{}")
#: Exceptions that a reader may raise.
Typed = (OSError, EnvironmentFailure)


class Readers:
    """One volume, and the readers of its files."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store = Store(root / "flashpool")
        self.store.prepare()
        (self.store.root / "archives").mkdir()
        self.holders = Liveness(
            self.store.holders, heartbeat_s=0.01, stale_s=60.0, claim_stale_s=15.0
        )
        self.holders.beat()
        self.marks = Marks(self.store, self.holders)
        self.environment = _environment(self.store)
        archive.pack(self.environment, self.store, self.holders.me, KEY)
        self.packed = self.store.archive(A).read_bytes()
        self.outbox = Outbox(self.store.root / "outbox" / "endpoint" / "pod", KEY)
        self.outbox.keep(_REPORT)
        (report,) = self.outbox.folder.iterdir()
        self.report = report
        self.all: list[Callable[[bytes], object]] = [
            self.memo,
            self.signed_memo,
            self.preloads,
            self.facts,
            self.sizes,
            self.seal,
            self.manifest,
            self.archive,
            self.tar,
            self.waiting,
            self.key,
            self.claim,
            self.names,
            self.queue_names,
            self.instances,
        ]

    def feed(self, data: bytes) -> None:
        """Run one reader on these bytes; exceptions other than typed errors propagate."""
        reader = self.all[data[0] % len(self.all)] if data else self.memo
        try:
            reader(data[1:])
        except Typed:
            pass

    def memo(self, data: bytes) -> None:
        path = self.store.request(A)
        path.write_bytes(data)
        StoredMemo(self.store, 60.0, None, self.holders).get(A)

    def signed_memo(self, data: bytes) -> None:
        path = self.store.request(B)
        path.write_bytes(data)
        assert StoredMemo(self.store, 60.0, KEY).get(B) is None

    def preloads(self, data: bytes) -> None:
        self.store.preloads(A).write_bytes(data)
        found = read_preloads(self.store, A)
        assert all(len(name) <= 200 for name in (*found.modules, *found.entries))

    def facts(self, data: bytes) -> None:
        self._replaced(manifest.FACTS, data, lambda: manifest.read_facts(self.environment))

    def sizes(self, data: bytes) -> None:
        self._replaced(manifest.FILES, data, lambda: manifest.check_sizes(self.environment))

    def seal(self, data: bytes) -> None:
        for key in (None, KEY):
            check = lambda key=key: manifest.check_seal(self.environment, key)  # noqa: E731
            self._replaced(manifest.SEAL, data, check)

    def _replaced(self, name: str, data: bytes, read: Callable[[], object]) -> None:
        path = self.environment / name
        before = path.read_bytes()
        path.write_bytes(data)
        try:
            read()
        except Typed:
            pass
        finally:
            path.write_bytes(before)

    def manifest(self, data: bytes) -> None:
        path = self.store.archive_manifest(A)
        before = path.read_bytes()
        path.write_bytes(data)
        try:
            archive.read_manifest(self.store, A, None)
        finally:
            path.write_bytes(before)

    def archive(self, data: bytes) -> None:
        """Replace a part of a valid archive with these bytes."""
        at = int.from_bytes(data[:2], "big") % len(self.packed)
        changed = self.packed[:at] + data[2:] + self.packed[at + len(data) - 2 :]
        self._extracted(changed)

    def tar(self, data: bytes) -> None:
        self._extracted(zstandard.ZstdCompressor().compress(data.ljust(1024, b"\0")))

    def _extracted(self, packed: bytes) -> None:
        file, target = self.root / "packed", self.root / "target"
        file.write_bytes(packed)
        target.mkdir()
        promise = Promise(
            name=A, sha256="0" * 64, size=len(packed), members=20, content_bytes=1 << 16
        )
        try:
            extract(file, promise, target)
            raise AssertionError("it does not have this checksum")
        except Typed:
            assert not (self.root / "escaped").exists()
        finally:
            remove_tree(target)

    def waiting(self, data: bytes) -> None:
        before = self.report.read_bytes()
        self.report.write_bytes(data)
        found = list(self.outbox.waiting(60.0))
        # The signature covers the content and not its form: an unknown field counts as absent.
        assert found in ([], [_REPORT])
        self.report.write_bytes(before)
        assert [one.job_id for one in self.outbox.waiting(60.0)] == ["job"]

    def key(self, data: bytes) -> None:
        local = self.root / "local"
        (local / "flashpool").mkdir(parents=True, exist_ok=True)
        (local / "flashpool" / "reports.key").write_bytes(data)
        report_key(Settings.from_environ({"FLASHPOOL_LOCAL_DIR": str(local)}))

    def claim(self, data: bytes) -> None:
        owner = os.fsdecode(data.replace(b"\0", b"") or b"x")[:2000]
        os.symlink(owner, self.store.claim(B))
        claims = Claims(self.store, self.holders)
        claims.elsewhere(B)
        claims.take(B)
        sweep(self.store, self.holders)
        self.store.claim(B).unlink(missing_ok=True)

    def names(self, data: bytes) -> None:
        """Create this name in a listed directory, as a file, a directory, a link or a pipe."""
        kind, name = data[:1], _name(data[1:])
        parse_holder(name)
        self.marks.put(A)
        folders = [self.store.root / folder for folder in (*_FOLDERS, f"leases/{A}")]
        made = [path for folder in folders if _planted(path := folder / name, kind)]
        try:
            assert sweep(self.store, self.holders, trimmed=True) == []
            evictor = Evictor(
                self.store,
                self.holders,
                self.marks,
                LeaseTable(self.marks, hold_s=0.0),
                StoreLimits(quota=1 << 40, max_age_s=1e9),
            )
            evictor.measure()
            evictor.run()
            self.store.archived()
            evict_archives(self.store, 1 << 40)
            self.marks.users(A)
            self.marks.put(A)
        finally:
            for path in made:
                remove_tree(path)
        assert self.environment.is_dir()

    def instances(self, data: bytes) -> None:
        """Write these bytes to a server's file of instances."""
        folder = self.store.root / "instances"
        folder.mkdir(exist_ok=True)
        (folder / "aa-1-1-aa.json").write_bytes(data)
        found = instance_files.InstanceFiles(self.root, EnvSettings(), "pod").exchange({})
        assert all(len(key) == 32 and one.as_dict() for key, one in found.items())

    def queue_names(self, data: bytes) -> None:
        """Create this name among reports and results."""
        kind, name = data[:1], _name(data[1:])
        results, other = self.root / "results", self.outbox.folder.with_name("other")
        for folder in (results, other):
            folder.mkdir(exist_ok=True)
        folders = (results, other, self.outbox.folder)
        made = [path for folder in folders if _planted(path := folder / name, kind)]
        try:
            self.outbox.forget_others(1e9)
            Spill(results, 1e9).spilled("job", Outcome(body=b"1", format="json"))
            assert [one.job_id for one in self.outbox.waiting(1e9)] == ["job"]
        finally:
            for path in made:
                remove_tree(path)
            shutil.rmtree(results)


def _name(data: bytes) -> str:
    name = data.replace(b"\0", b"").replace(b"/", b"")[:255]
    return os.fsdecode(name if name not in {b"", b".", b".."} else b"x")


def _planted(path: Path, kind: bytes) -> bool:
    if os.path.lexists(path):
        return False
    way = kind[0] % 4 if kind else 0
    if way == 0:
        path.touch()
    elif way == 1:
        path.mkdir()
        (path / "inner").touch()
    elif way == 2:
        path.symlink_to("/dev/zero")
    else:
        os.mkfifo(path)
    return True


def _environment(store: Store) -> Path:
    path = store.environment(A)
    (path / "lib" / "python3.12" / "site-packages").mkdir(parents=True)
    (path / "lib" / "module.py").write_text("x = 1\n")
    files, size = manifest.list_files(path)
    facts = manifest.Facts(
        digest=A,
        mode="layer",
        python_version="3.12.1",
        base_python="/x",
        site_dirs=("/x",),
        lock=("x==1",),
        decisions=(),
        reason="",
        created=1.0,
        bytes=size,
        files=files,
    )
    manifest.write_facts(path, facts)
    manifest.seal(path, KEY)
    return path


def examples(readers: Readers) -> list[bytes]:
    """Valid contents for each reader; mutations of these reach deeper than random bytes."""
    facts = (readers.environment / manifest.FACTS).read_bytes()
    memo = {"digest": B, "resolved": 1.5, "requirements": ["x"], "mac": "0" * 64}
    told = json.dumps(memo).encode()
    of_reader: dict[Callable[[bytes], object], bytes] = {
        readers.memo: told,
        readers.signed_memo: told,
        readers.preloads: b'{"modules": ["a.b"], "entries": ["a"]}',
        readers.facts: facts,
        readers.sizes: (readers.environment / manifest.FILES).read_bytes(),
        readers.seal: (readers.environment / manifest.SEAL).read_bytes(),
        readers.manifest: readers.store.archive_manifest(A).read_bytes(),
        readers.archive: b"\0\x10changed",
        readers.tar: zstandard.ZstdDecompressor().decompressobj().decompress(readers.packed),
        readers.waiting: readers.report.read_bytes(),
        readers.key: b"k" * 32,
        readers.claim: readers.holders.me.encode(),
        readers.names: b"\0" + readers.holders.me.encode(),
        readers.queue_names: b"\0" + readers.report.name.encode(),
        readers.instances: json.dumps({"pod": "x", "instances": {"a" * 32: [1.5, True]}}).encode(),
    }
    return [bytes([number]) + of_reader[reader] for number, reader in enumerate(readers.all)]
