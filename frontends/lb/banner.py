"""The text that a server prints when it listens: addresses, settings, and a first call to copy."""

from __future__ import annotations

import json
from typing import Final

from flashpool.frontends.settings.table import Settings

_EXAMPLE: Final = {
    "function_name": "add",
    "function_code": "def add(a, b):\n    return a + b",
    "args": [40, 2],
    "serialization_format": "json",
}


def banner(settings: Settings, version: str, address: str, stats_address: str) -> str:
    """Return the banner of a live server."""
    slots = "1 slot" if settings.slots == 1 else f"{settings.slots} slots"
    token = "; every call needs the token" if settings.token else ""
    return "\n".join(
        (
            f"flashpool {version}: live calls on {address}, {slots}, {settings.base_python}{token}",
            f"stats: {stats_address}",
            "try:",
            f"  {example(settings, address)}",
        )
    )


def app_banner(version: str, name: str, address: str, stats_address: str) -> str:
    """Return the banner of a deployed app."""
    return f"flashpool {version}: the app {name} on {address}\nstats: {stats_address}"


def example(settings: Settings, address: str) -> str:
    """Return a curl command that calls a function."""
    authorization = ' -H "Authorization: Bearer $FLASHPOOL_TOKEN"' if settings.token else ""
    return f"curl -s {address}/execute{authorization} -d '{json.dumps(_EXAMPLE)}'"
