"""The two keys of an environment.

    NormalSpec + index settings + base + pins  -> request key   (what was requested)
    lock + mode + interpreter + platform + base + pins -> digest (what is installed)

Two requests that resolve alike have two request keys and one digest. Both are 40 hexadecimal
characters; no other text is accepted as part of a path.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from typing import Final

from flashpool.envs.settings import EnvSettings
from flashpool.envs.store.layout import ID_LENGTH

from .base_interpreter import BaseFacts
from .spec import NormalSpec

__all__ = ["FORMAT", "digest_of", "index_identity", "request_key"]

#: Raised when the layout of an environment changes: older environments are left to eviction.
FORMAT: Final = 3
_INDEX_VARIABLES: Final = (
    "UV_DEFAULT_INDEX",
    "UV_INDEX",
    "UV_INDEX_URL",
    "UV_EXTRA_INDEX_URL",
    "UV_FIND_LINKS",
    "UV_INDEX_STRATEGY",
    "UV_TORCH_BACKEND",
    "UV_EXCLUDE_NEWER",
    "UV_PRERELEASE",
)


def _hash(*parts: object) -> str:
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:ID_LENGTH]


def index_identity(settings: EnvSettings) -> str:
    """Return a key of the index settings, including uv's own variables, hiding credentials."""
    outside = [os.environ.get(name, "") for name in _INDEX_VARIABLES]
    return _hash(settings.index_url, settings.extra_index_urls, settings.find_links, outside)


def request_key(spec: NormalSpec, base: BaseFacts, settings: EnvSettings) -> str:
    """Return the key of a request, on this base and from this index."""
    # Left out if no package is brought, so that such requests keep their earlier keys.
    brought = [["brought", *(package.line for package in spec.brought)]] if spec.brought else []
    return _hash(
        "request",
        FORMAT,
        [requirement.identity for requirement in spec.requirements],
        index_identity(settings),
        base.fingerprint,
        sorted(settings.runtime_pins),
        *brought,
    )


def digest_of(lock: Sequence[str], base: BaseFacts, settings: EnvSettings, *, layered: bool) -> str:
    """Return the digest of an environment.

    Brought packages are not part of the digest: the lock, which lacks them, already differs. An
    isolated environment does not see the base's packages, so it is the same on every image that has
    the same interpreter at the same path.
    """
    return _hash(
        "environment",
        FORMAT,
        sorted(lock),
        base.fingerprint if layered else base.interpreter_identity,
        index_identity(settings),
        sorted(settings.runtime_pins),
    )
