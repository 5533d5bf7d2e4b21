"""Writes results that are too large for the platform to the volume; the answer says where.

    result --> <volume>/flashpool/results/<job>-<random>.pkl | .json
           --> {"flashpool_result": {"path": .., "bytes": .., "format": .., "sha256": ..}}

The file holds the result itself: a pickle as the call made it (which needs the call's packages to
load), or JSON text. The result may be as large as the memory of a small machine, so it is never
held twice, but decoded, hashed and written piece by piece. A reference replaces the result in the
answer, in the requested form, so that an old client finds the reference instead of None.
"""

from __future__ import annotations

import binascii
import hashlib
import logging
import pickle
import re
import secrets
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import msgspec

from flashpool.envs.store.volume_files import Folder, left_by_clock
from flashpool.pool.calls import Outcome

_log = logging.getLogger(__name__)

#: The key of a reference.
KEY: Final = "flashpool_result"
_SUFFIXES: Final = {"json": ".json", "pickle": ".pkl"}
#: Seconds between searches for results that are too old.
_LOOK_S: Final = 600.0
#: Bytes of a result that are processed at once: a multiple of base64's groups of four.
_PIECE: Final = 4 * 64 * 1024
_ODD: Final = re.compile(r"[^A-Za-z0-9_-]")
_NEW: Final = ".new"
#: Names of files for results, including incomplete ones.
_OURS: Final = re.compile(r"[A-Za-z0-9_-]{1,80}-[0-9a-f]{8}\.(json|pkl|new)")


class Spill:
    """The folder of large results. Its methods block; call them from a thread."""

    def __init__(self, folder: Path, keep_s: float) -> None:
        self._files = Folder(folder.parent, folder.name)
        self._keep_s = keep_s
        self._looked = float("-inf")

    def spilled(self, job_id: str, outcome: Outcome) -> tuple[Outcome, dict[str, Any]]:
        """Return the outcome with a reference in place of its result.

        Raises:
            OSError: the result cannot be written.
            ValueError: the result is not valid base64.
        """
        self._forget_old()
        as_json = outcome.format == "json"
        name = f"{_ODD.sub('-', job_id)[:80]}-{secrets.token_hex(4)}"
        file = f"{name}{_SUFFIXES[outcome.format]}"
        # JSON is not checked: the answer contains only the reference.
        size, digest = self._write(file, _pieces(outcome.body) if as_json else _data(outcome.body))
        reference = {
            "path": str(self._files.path / file),
            "bytes": size,
            "format": outcome.format,
            "sha256": digest,
            "kept_s": self._keep_s,
        }
        body = _encoded({KEY: reference}, as_json=as_json)
        return replace(outcome, body=body), reference

    def _write(self, name: str, pieces: Iterator[bytes | memoryview]) -> tuple[int, str]:
        """Write the result; return its size in bytes and its hash."""
        size, digest = 0, hashlib.sha256()

        def counted() -> Iterator[bytes | memoryview]:
            nonlocal size
            for piece in pieces:
                digest.update(piece)
                size += len(piece)
                yield piece

        beside = f"{name.rpartition('.')[0]}{_NEW}"
        self._files.write(name, counted(), beside=beside, sync=True)
        return size, digest.hexdigest()

    def _forget_old(self) -> None:
        """Delete results of any pod that are too old by the clock that stamps them.

        Only regular files with such names are deleted: anyone who can write to the volume could
        place a link to another file.
        """
        now = time.monotonic()
        if now - self._looked < _LOOK_S:
            return
        self._looked = now
        try:
            found = self._files.files(lambda name: _OURS.fullmatch(name) or left_by_clock(name))
            before = self._files.now() - self._keep_s if found else 0.0
            for name, status in found:
                if status.st_mtime >= before:
                    break
                self._files.remove(name)
        except OSError as error:
            _log.debug("Old results stay: %s", error)


def _pieces(body: bytes) -> Iterator[memoryview]:
    # Between pieces the event loop can run; processing a whole body would block it for seconds.
    whole = memoryview(body)
    return (whole[start : start + _PIECE] for start in range(0, len(body), _PIECE))


def _data(body: bytes) -> Iterator[bytes]:
    """Yield the decoded pieces of a base64 text; raise ValueError if it is invalid."""
    tail = body[-2:]
    left = len(body) // 4 * 3 - len(tail) + len(tail.rstrip(b"="))
    for piece in _pieces(body):
        data = binascii.a2b_base64(piece)
        left -= len(data)
        yield data
    if left or len(body) % 4:
        # The decoder skips invalid characters, and stops at padding: compare the length.
        raise ValueError("not base64")


def _encoded(value: dict[str, Any], *, as_json: bool) -> bytes:
    if as_json:
        return msgspec.json.encode(value)
    # Plain data only, so that every version of Python can load it.
    return binascii.b2a_base64(pickle.dumps(value, protocol=4), newline=False)
