"""Reports the platform has not taken yet, on disk: a restart of this process must not lose them.

    <state>/outbox/<endpoint>/<worker>/<hash of the job's id>.json

A file is one JSON line that says of which job it is, then the report itself. It is written in
full beside its place and renamed, so that one that is there is whole. A worker minds its own
directory only: the platform takes a report from the worker that has the job.

Workers without a name (no RUNPOD_POD_ID) have numbers, each held by a lock for as long as the
process lives: several on one machine must not post and delete each other's.

    <endpoint>/worker, worker-1, worker-2 ..     the first that nobody holds
    <endpoint>/worker.lock, ..                   who holds it
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import secrets
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

_log = logging.getLogger(__name__)

_SUFFIX: Final = ".json"
_NEW: Final = ".new"
#: Workers without a name that share a place.
_MOST_WORKERS: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class JobReport:
    """What the platform is told of a job, once."""

    job_id: str
    #: The body of a job-done.
    body: bytes
    #: Whether the job's items went to job-stream before.
    streamed: bool = False
    #: It says only that we ended the job because we left: no reason not to run it again.
    cut_off: bool = False


class _Head(msgspec.Struct, frozen=True):
    job_id: str
    streamed: bool
    #: Seconds since 1970: the process that goes on with it has another monotonic clock.
    kept_at: float
    cut_off: bool = False


class Outbox:
    """The reports of one worker that wait. Its methods block; call them from a thread."""

    def __init__(self, folder: Path, *, is_named: bool = True) -> None:
        """``is_named``: the folder is no other living worker's."""
        self.folder = folder
        self._is_ours = is_named
        self._claim = threading.Lock()
        #: Kept open for as long as the folder is ours.
        self._held: int | None = None

    def own(self) -> Path:
        """The folder, which is ours from now on."""
        with self._claim:
            if not self._is_ours:
                self.folder, self._held = _claimed(self.folder)
                self._is_ours = True
        return self.folder

    def close(self) -> None:
        """Leave it to the next one, as the end of the process does."""
        if self._held is not None:
            os.close(self._held)
            self._held = None

    def keep(self, report: JobReport) -> None:
        """Write it down; raises OSError."""
        self.own().mkdir(parents=True, exist_ok=True, mode=0o700)
        head = _Head(
            job_id=report.job_id,
            streamed=report.streamed,
            kept_at=time.time(),
            cut_off=report.cut_off,
        )
        path = self._path(report.job_id)
        # Of its own: one whose answer is slow is written down while all that waits is saved.
        new = path.with_suffix(f".{secrets.token_hex(4)}{_NEW}")
        try:
            with new.open("wb") as file:
                file.write(msgspec.json.encode(head) + b"\n")
                file.write(report.body)
                file.flush()
                os.fsync(file.fileno())
            new.replace(path)
        except OSError:
            # On a disk that is full, half a report may hold the room that another needs.
            new.unlink(missing_ok=True)
            raise

    def drop(self, job_id: str) -> None:
        """It was taken, or is of no use any more."""
        try:
            self._path(job_id).unlink(missing_ok=True)
        except OSError as error:
            _log.warning("A report that was taken cannot be deleted, and may come again: %s", error)

    def waiting(self, older_than_s: float) -> Iterator[JobReport]:
        """Those an earlier process has left, oldest first; deletes what is too old, or half."""
        try:
            folder = self.own()
            for half in folder.glob(f"*{_NEW}"):
                half.unlink(missing_ok=True)
            paths = sorted(folder.glob(f"*{_SUFFIX}"), key=lambda path: path.stat().st_mtime)
        except OSError as error:
            _log.warning("Reports that wait cannot be listed: %s", error)
            return
        for path in paths:
            found = _read(path)
            if found is None:
                continue
            report, kept_at = found
            if time.time() - kept_at > older_than_s:
                _log.error(
                    "Job %s: its result was not taken in time, and is dropped", report.job_id
                )
                self.drop(report.job_id)
            else:
                yield report

    def forget_others(self, older_than_s: float) -> None:
        """Delete what workers have left that never came back; their jobs are long over."""
        try:
            paths = list(self.folder.parent.glob("*/*"))
        except OSError as error:
            _log.warning("Reports of other workers cannot be listed: %s", error)
            return
        for path in paths:
            try:
                if time.time() - path.stat().st_mtime <= older_than_s:
                    continue
                if path.suffix == _SUFFIX:
                    _log.warning("A result that no worker came back to report is deleted: %s", path)
                path.unlink()
                path.parent.rmdir()
            except OSError as error:
                _log.debug("Not deleted: %s", error)  # another file is there, or another worker did

    def _path(self, job_id: str) -> Path:
        # An id is the platform's to choose, and no file name.
        name = hashlib.sha256(job_id.encode("utf-8", "surrogatepass")).hexdigest()[:32]
        return self.folder / f"{name}{_SUFFIX}"


def _claimed(first: Path) -> tuple[Path, int | None]:
    """The first folder of these names that no living process holds, and what holds it."""
    first.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    for number in range(_MOST_WORKERS):
        folder = first.with_name(f"{first.name}-{number}") if number else first
        file = os.open(folder.with_name(f"{folder.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
        # Not filelock: since 4.2 an exit handler of its own lets go of what is held, or does not,
        # depending on the threads there are. The kernel lets go when the process has ended, and
        # not before, so that nobody reads here while it still writes. And where every attempt is
        # EACCES, filelock calls each folder held, so that all of them would be tried.
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
        except OSError as error:
            os.close(file)
            _log.warning("No locks in %s (%s): what waits there is nobody's", first.parent, error)
            break
        else:
            return folder, file
    # Of this process alone: nobody goes on with it, and nobody is in its way.
    return first.with_name(f"{first.name}-{secrets.token_hex(8)}"), None


def _read(path: Path) -> tuple[JobReport, float] | None:
    try:
        line, _, body = path.read_bytes().partition(b"\n")
        head = msgspec.json.decode(line, type=_Head)
    except (OSError, ValueError) as error:
        _log.error("A report that waits cannot be read: %s: %s", path, error)
        return None
    report = JobReport(job_id=head.job_id, body=body, streamed=head.streamed, cut_off=head.cut_off)
    return report, head.kept_at
