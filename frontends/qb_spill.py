"""Results that are too large for the platform: written to the volume, and where is answered.

    result --> <volume>/flashpool/results/<job>-<random>.pkl | .json
           --> {"flashpool_result": {"path": .., "bytes": .., "format": .., "sha256": ..}}

What is written is the result itself: a pickle as the call made it (opened where the packages
are that it needs), or JSON text. The reference takes the result's place in the answer, in the
form that was asked for, so that a client which knows nothing of it finds it and not None.
"""

from __future__ import annotations

import binascii
import hashlib
import logging
import os
import pickle
import re
import secrets
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import msgspec

from flashpool.pool.calls import Outcome

_log = logging.getLogger(__name__)

#: The key of a reference.
KEY: Final = "flashpool_result"
_SUFFIXES: Final = {"json": ".json", "pickle": ".pkl"}
#: Seconds between looks for results that are too old.
_LOOK_S: Final = 600.0
_NAME: Final = re.compile(r"[^A-Za-z0-9_-]")


class Spill:
    """The folder of large results. Its methods block; call them from a thread."""

    def __init__(self, folder: Path, keep_s: float) -> None:
        self._folder = folder
        self._keep_s = keep_s
        self._looked = float("-inf")

    def spilled(self, job_id: str, outcome: Outcome) -> tuple[Outcome, dict[str, Any]]:
        """The outcome with a reference in place of its result; raises OSError."""
        self._forget_old()
        as_json = outcome.format == "json"
        data = outcome.body if as_json else binascii.a2b_base64(outcome.body)
        name = f"{_NAME.sub('-', job_id)[:80]}-{secrets.token_hex(4)}"
        path = self._folder / f"{name}{_SUFFIXES[outcome.format]}"
        self._write(path, data)
        reference = {
            "path": str(path),
            "bytes": len(data),
            "format": outcome.format,
            "sha256": hashlib.sha256(data).hexdigest(),
            "kept_s": self._keep_s,
        }
        body = _encoded({KEY: reference}, as_json=as_json)
        return replace(outcome, body=body), reference

    def _write(self, path: Path, data: bytes) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        new = path.with_suffix(".new")
        try:
            with new.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            new.replace(path)
        except OSError:
            new.unlink(missing_ok=True)
            raise

    def _forget_old(self) -> None:
        now = time.monotonic()
        if now - self._looked < _LOOK_S or not self._folder.is_dir():
            return
        self._looked = now
        for path in self._folder.iterdir():
            try:
                # Wall clock: files of other pods, too.
                if time.time() - path.stat().st_mtime > self._keep_s:
                    path.unlink()
            except OSError as error:
                _log.debug("An old result stays: %s", error)


def _encoded(value: dict[str, Any], *, as_json: bool) -> bytes:
    if as_json:
        return msgspec.json.encode(value)
    # Plain data only: any Python reads it.
    return binascii.b2a_base64(pickle.dumps(value, protocol=4), newline=False)
