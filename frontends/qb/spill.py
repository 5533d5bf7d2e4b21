"""Results that are too large for the platform: written to the volume, and where is answered.

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
#: Seconds between looks for results that are too old.
_LOOK_S: Final = 600.0
#: Bytes of a result that are worked on at once; whole groups of base64.
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
            OSError: it cannot be written.
            ValueError: it is no result.
        """
        self._forget_old()
        as_json = outcome.format == "json"
        name = f"{_ODD.sub('-', job_id)[:80]}-{secrets.token_hex(4)}"
        file = f"{name}{_SUFFIXES[outcome.format]}"
        # JSON is not parsed: no answer is built around a result that is only written.
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
    # Between pieces the loop has its turn; a whole body would keep it waiting for seconds.
    whole = memoryview(body)
    return (whole[start : start + _PIECE] for start in range(0, len(body), _PIECE))


def _data(body: bytes) -> Iterator[bytes]:
    """Return the span of the base64 text."""
    tail = body[-2:]
    left = len(body) // 4 * 3 - len(tail) + len(tail.rstrip(b"="))
    for piece in _pieces(body):
        data = binascii.a2b_base64(piece)
        left -= len(data)
        yield data
    if left or len(body) % 4:
        # The decoder skips what it does not know, and stops where it thinks that the end is.
        raise ValueError("not base64")


def _encoded(value: dict[str, Any], *, as_json: bool) -> bytes:
    if as_json:
        return msgspec.json.encode(value)
    # Plain data only: any Python reads it.
    return binascii.b2a_base64(pickle.dumps(value, protocol=4), newline=False)
