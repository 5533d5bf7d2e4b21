"""Reports that the platform has not accepted yet, on disk, so that a restart does not lose them.

    <state>/outbox/<endpoint>/<worker>/<hash of the job's id>.json

A file is one JSON line that names the job, followed by the report. A file is written beside its
place and renamed, so a file in its place is complete. A worker reads only its own directory: the
platform accepts a report only from the worker that has the job.

The folder may be on a volume that others can write to. So each report is signed, together with its
place, with a key that calls do not know (`paths.report_key`): unsigned reports are not posted. No
link is followed, and only files with such names and of bounded size are read or deleted. Ages are
measured with the file system's clock, because the machine's clock may have jumped.

Workers without a name (no RUNPOD_POD_ID) use numbers, each held by a lock while the process lives:
several workers on one machine must not post and delete each other's reports.

    <endpoint>/worker, worker-1, worker-2 ..     a worker takes the first that no process holds
    <endpoint>/worker.lock, ..                   locked by the process that holds the folder
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import logging
import os
import re
import secrets
import stat
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from flashpool.envs.store.volume_files import Folder, left_by_clock

_log = logging.getLogger(__name__)

_SUFFIX: Final = ".json"
_NEW: Final = ".new"
_REPORT: Final = re.compile(r"[0-9a-f]{32}\.json")
_UNFINISHED: Final = re.compile(r"[0-9a-f]{32}\.[0-9a-f]{8}\.new")
#: Most workers without a name that share a folder.
_MOST_WORKERS: Final = 256
#: Most reports that are resumed from an earlier process, and most bytes that are read for this.
_MOST: Final = 2000
_MOST_BYTES: Final = 1 << 30
#: Most bytes of a report, and of the line before it.
_LARGEST: Final = 256 << 20
_LONGEST_HEAD: Final = 64 << 10
_LOCK: Final = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass(frozen=True, slots=True, kw_only=True)
class JobReport:
    """The report of a job to the platform, which is sent once."""

    job_id: str
    #: The body of a job-done.
    body: bytes
    #: Whether the job's items were posted to job-stream before.
    streamed: bool = False
    #: The report only says that this process ended the job because it exited: the job may run
    #: again.
    cut_off: bool = False
    #: Whether the report has an error; False for reports of an earlier process.
    failed: bool = False


class _Head(msgspec.Struct, frozen=True):
    job_id: str
    streamed: bool
    #: Seconds since 1970. Earlier versions use this as a report's age.
    kept_at: float
    cut_off: bool = False
    #: Signs the fields above, the place and the report.
    mac: str = ""


class Outbox:
    """The waiting reports of one worker. Its methods block; call them from a thread."""

    def __init__(
        self, folder: Path, key: bytes, *, is_named: bool = True, largest: int = _LARGEST
    ) -> None:
        """``is_named``: no other living worker uses the folder. ``key``: signs the reports."""
        self.folder = folder
        self._key = key
        self._is_ours = is_named
        self._largest = max(largest, _LARGEST)
        self._claim = threading.Lock()
        #: A descriptor of the lock, open while this process owns the folder.
        self._held: int | None = None

    def own(self) -> Path:
        """Take the folder, and return its path."""
        with self._claim:
            if not self._is_ours:
                self.folder, self._held = _claimed(self.folder)
                self._is_ours = True
        return self.folder

    def _files(self) -> Folder:
        return _within(self.own())

    def close(self) -> None:
        """Release the folder to other processes, as an exit does."""
        if self._held is not None:
            os.close(self._held)
            self._held = None

    def keep(self, report: JobReport) -> None:
        """Write a report to disk; raise OSError if that fails."""
        files = self._files()
        head = _Head(
            job_id=report.job_id,
            streamed=report.streamed,
            kept_at=time.time(),
            cut_off=report.cut_off,
        )
        signed = msgspec.structs.replace(head, mac=self._mac(head, report.body))
        name = _name(report.job_id)
        # A unique name: a slow report may be written while all waiting reports are saved.
        beside = f"{name.removesuffix(_SUFFIX)}.{secrets.token_hex(4)}{_NEW}"
        pieces = [msgspec.json.encode(signed) + b"\n", report.body]
        files.write(name, pieces, beside=beside, sync=True)

    def drop(self, job_id: str) -> None:
        """Delete a report that was accepted, or is no longer needed."""
        try:
            if self._files().remove(_name(job_id)):
                return
            error: object = "something is left of it"
        except OSError as failure:
            error = failure
        _log.warning(
            "A report that was accepted cannot be deleted, and may be posted again: %s", error
        )

    def waiting(self, older_than_s: float) -> Iterator[JobReport]:
        """Yield the reports of an earlier process, oldest first; delete old and partial files."""
        try:
            files = self._files()
            for half, _ in files.files(_is_left_over):
                files.remove(half)
            found = files.files(_REPORT.fullmatch)
            now = files.now() if found else 0.0
        except OSError as error:
            _log.warning("Waiting reports cannot be listed: %s", error)
            return
        taken = size = 0
        for name, status in found:
            size += status.st_size if status.st_size <= self._largest else 0
            if taken >= _MOST or size > _MOST_BYTES:
                _log.error("More reports wait in %s than one process takes over", files.path)
                return
            report = self._read(files, name)
            if now - status.st_mtime > older_than_s:
                what = f"Job {report.job_id}" if report else f"{files.path / name}"
                _log.error(
                    "%s: the platform did not accept the result in time, and it is dropped", what
                )
                files.remove(name)
            elif report is not None:
                taken += 1
                yield report

    def _read(self, files: Folder, name: str) -> JobReport | None:
        """Read a report; other files are left alone until they are too old."""
        try:
            with files.reading(name, self._largest) as file:
                head = msgspec.json.decode(file.readline(_LONGEST_HEAD), type=_Head)
                if _name(head.job_id) != name:
                    raise ValueError("it belongs to another job")
                body = file.read(self._largest)
            unsigned = msgspec.structs.replace(head, mac="")
            if not hmac.compare_digest(self._mac(unsigned, body).encode(), head.mac.encode()):
                raise ValueError("it is not signed by this worker")
        except (OSError, ValueError, RecursionError) as error:
            _log.error("A waiting report is not posted: %s: %s", files.path / name, error)
            return None
        return JobReport(
            job_id=head.job_id, body=body, streamed=head.streamed, cut_off=head.cut_off
        )

    def _mac(self, head: _Head, body: bytes) -> str:
        place = f"{self.folder.parent.name}/{self.folder.name}"
        mac = hmac.new(self._key, msgspec.json.encode((place, head)), hashlib.sha256)
        mac.update(body)
        return mac.hexdigest()

    def forget_others(self, older_than_s: float) -> None:
        """Delete old files of workers that never came back; their jobs have long finished."""
        try:
            own = self.own()
            endpoint = _within(own.parent, levels=2)
            others = [name for name in endpoint.names() if name != own.name]
            now = endpoint.now() if others else 0.0
            for name, status in endpoint.files(left_by_clock):
                if status.st_mtime < now - older_than_s:
                    endpoint.remove(name)
        except OSError as error:
            _log.warning("Reports of other workers cannot be listed: %s", error)
            return
        for name in others:
            try:
                _forget(_within(own.with_name(name)), now - older_than_s)
            except OSError as error:
                _log.debug("Not deleted: %s", error)  # another file is there, or another worker did


def _within(path: Path, levels: int = 3) -> Folder:
    """Return ``<state>/outbox/<endpoint>/<worker>``; the operator owns the state directory."""
    return Folder(path.parents[levels - 1], *path.parts[-levels:], mode=0o700)


def _name(job_id: str) -> str:
    # The platform chooses ids, which may not be valid file names.
    return hashlib.sha256(job_id.encode("utf-8", "surrogatepass")).hexdigest()[:32] + _SUFFIX


def _is_left_over(name: str) -> bool:
    """Return whether a process that was killed left this temporary file."""
    return _UNFINISHED.fullmatch(name) is not None or left_by_clock(name)


def _forget(worker: Folder, before: float) -> None:
    """Delete what a worker wrote before a time of the file system's clock."""
    ours = worker.files(lambda name: _REPORT.fullmatch(name) or _is_left_over(name))
    old = [name for name, status in ours if status.st_mtime < before]
    for name in old:
        if name.endswith(_SUFFIX):
            _log.warning("A result that no worker reported is deleted: %s", name)
        worker.remove(name)
    if old:
        worker.drop()


def _claimed(first: Path) -> tuple[Path, int | None]:
    """Return the first such folder that no living process holds, and its locked descriptor."""
    place = _within(first.parent, levels=2)
    for number in range(_MOST_WORKERS):
        folder = first.with_name(f"{first.name}-{number}") if number else first
        file = _lock_file(place, f"{folder.name}.lock")
        # Not filelock: from 4.2 on, its exit handler may or may not release locks, depending on the
        # threads that exist. The kernel releases a lock when the process has ended, so no other
        # process reads here while this one still writes. And where every attempt fails with EACCES,
        # filelock considers each folder held, so that all of them would be tried.
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
        except OSError as error:
            os.close(file)
            _log.warning(
                "File locks do not work in %s (%s): reports that wait there are not taken over",
                first.parent,
                error,
            )
            break
        else:
            return folder, file
    # A folder for this process alone, which no other process uses or resumes.
    return first.with_name(f"{first.name}-{secrets.token_hex(8)}"), None


def _lock_file(place: Folder, name: str) -> int:
    """Return the file to lock; replace other kinds of files, which no process can hold."""
    with place.opened(make=True) as folder:
        for _ in range(2):
            try:
                file = os.open(name, _LOCK, 0o600, dir_fd=folder)
            except OSError as error:
                problem = error
            else:
                if stat.S_ISREG(os.fstat(file).st_mode):
                    return file
                os.close(file)
                problem = OSError(f"{name} is no file")
            place.remove_other(name)
    raise problem
