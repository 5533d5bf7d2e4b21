"""Selects the environment variables of an app: those of its endpoint, without the server's own.

The platform mixes the variables that the user declared for the endpoint with the server's
environment, and they cannot be told apart. A deployed app therefore gets all of them. An app that
is served by hand gets the variables that every call gets, and those that the client's library
reads. Keys and addresses with which the platform distributes jobs, and the server's token, are
always removed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from flashpool.frontends.settings.worker_env import worker_env

if TYPE_CHECKING:
    from flashpool.frontends.settings.table import Settings

__all__ = ["app_variables"]

_RESOURCE: Final = "FLASH_RESOURCE_NAME"
_ENDPOINT: Final = "RUNPOD_ENDPOINT_ID"
_KEY: Final = "RUNPOD_API_KEY"
_MANIFEST: Final = "FLASH_MANIFEST_PATH"
#: Variables that the client's library reads: where the app runs, and how it calls its neighbours.
_CLIENTS: Final = (
    *(_ENDPOINT, "RUNPOD_POD_ID", _KEY),
    *("FLASH_APP", "FLASH_ENV", "FLASH_ENVIRONMENT_ID", _MANIFEST, "FLASH_SENTINEL_TIMEOUT"),
    *("RUNPOD_*_URL", "RUNPOD_URL_MIXED_OK", "RUNPOD_ENV", "LOG_LEVEL"),
)
_ALL: Final = ("*", _KEY)


def app_variables(
    environ: Mapping[str, str],
    settings: Settings,
    resource: str,
    *,
    deployed: bool,
    manifest: Path | None,
) -> dict[str, str]:
    """Return the variables; ``deployed``: those of the server's environment are the endpoint's."""
    chosen = settings.origins.get("pass_env") == "environment"
    patterns = _ALL if deployed and not chosen else settings.pass_env
    found = worker_env(environ, (*patterns, *_CLIENTS))
    if not (found.get(_ENDPOINT) or found.get("RUNPOD_POD_ID")):
        # Without this variable the client's library sends each call to another endpoint.
        found[_ENDPOINT] = "local"
    if manifest is not None:
        found[_MANIFEST] = str(manifest)
    return {**found, _RESOURCE: resource}
