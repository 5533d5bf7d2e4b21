"""Reports the platform has not taken yet, on disk: a restart of this process must not lose them.

    <state>/outbox/<endpoint>/<worker>/<hash of the job's id>.json

A file is one JSON line that says of which job it is, then the report itself. It is written in
full beside its place and renamed, so that one that is there is whole. A worker minds its own
directory only: the platform takes a report from the worker that has the job.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

_log = logging.getLogger(__name__)

_SUFFIX: Final = ".json"
_NEW: Final = ".new"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What the platform is told of a job, once."""

    job_id: str
    #: The body of a job-done.
    body: bytes
    #: Whether the job's items went to job-stream before.
    streamed: bool = False


class _Head(msgspec.Struct, frozen=True):
    job_id: str
    streamed: bool
    #: Seconds since 1970: the process that goes on with it has another monotonic clock.
    kept_at: float


class Outbox:
    """The reports of one worker that wait. Its methods block; call them from a thread."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def keep(self, report: Report) -> None:
        """Write it down; raises OSError."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        head = _Head(job_id=report.job_id, streamed=report.streamed, kept_at=time.time())
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

    def waiting(self, older_than_s: float) -> Iterator[Report]:
        """Those an earlier process has left, oldest first; deletes what is too old, or half."""
        try:
            for half in self.folder.glob(f"*{_NEW}"):
                half.unlink(missing_ok=True)
            paths = sorted(self.folder.glob(f"*{_SUFFIX}"), key=lambda path: path.stat().st_mtime)
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


def _read(path: Path) -> tuple[Report, float] | None:
    try:
        line, _, body = path.read_bytes().partition(b"\n")
        head = msgspec.json.decode(line, type=_Head)
    except (OSError, ValueError) as error:
        _log.error("A report that waits cannot be read: %s: %s", path, error)
        return None
    return Report(job_id=head.job_id, body=body, streamed=head.streamed), head.kept_at
