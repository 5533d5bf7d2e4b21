"""Chooses between the four modes of a process: the image decides one half, the platform the other.

                         queue image (handler.py)        load-balanced image (lb_handler:app)
    live                 no resource is named            no resource is named
    deployed             a resource is named             a resource is named

The resource is in FLASH_RESOURCE_NAME, or in RUNPOD_RESOURCE_NAME, which newer clients use. The
client never changes an image's command, so only variables can decide. FLASH_ENDPOINT_TYPE says
which image a deployed endpoint needs, but not every client sets it: so a named resource alone
decides. A deployed endpoint has its code in its image, and must never run code that clients send.

Only the empty string counts as not set, because refusing live calls is the safe choice.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final

_RESOURCE: Final = ("FLASH_RESOURCE_NAME", "RUNPOD_RESOURCE_NAME")
_KIND: Final = "FLASH_ENDPOINT_TYPE"


class Mode(enum.Enum):
    """The kind of work that a process serves."""

    LIVE_QUEUE = "live queue"
    LIVE_BALANCED = "live load-balanced"
    DEPLOYED_QUEUE = "deployed queue"
    DEPLOYED_BALANCED = "deployed load-balanced"


class ModeError(Exception):
    """The variables name no mode that this image can serve; the message says what to do."""


def of_queue(environ: Mapping[str, str]) -> Mode:
    """Return the mode of the queue image, and of ``flashpool serve qb`` with any flags."""
    if environ.get(_KIND) == "lb":
        raise ModeError(
            f"{_KIND}=lb asks for a load-balanced endpoint, and this is the queue's "
            "entry point: use the load-balanced image (lb_handler:app, or `flashpool serve lb`)"
        )
    return Mode.DEPLOYED_QUEUE if _set(environ, _RESOURCE) else Mode.LIVE_QUEUE


def of_balanced(environ: Mapping[str, str]) -> Mode:
    """Return the mode of the load-balanced image, and of ``flashpool serve lb``."""
    kind = environ.get(_KIND, "")
    if kind not in ("", "lb"):
        raise ModeError(f"{_KIND}={kind!r} is not known: set it to lb, or unset it")
    if _set(environ, _RESOURCE):
        return Mode.DEPLOYED_BALANCED
    if kind:
        raise ModeError(
            f"{_KIND}=lb asks for a deployed endpoint, and its resource is not named: set "
            f"{' or '.join(_RESOURCE)}, or unset {_KIND} to serve live calls"
        )
    return Mode.LIVE_BALANCED


def resource(environ: Mapping[str, str]) -> str:
    """Return the name of the resource; empty if no resource is named."""
    return next((environ[name] for name in _set(environ, _RESOURCE)), "")


def _set(environ: Mapping[str, str], names: tuple[str, ...]) -> list[str]:
    return [name for name in names if environ.get(name)]
