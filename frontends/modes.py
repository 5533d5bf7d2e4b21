"""Which of the four modes a process is to run in: the image says one half, the platform the other.

                         queue image (handler.py)        load-balanced image (lb_handler:app)
    live                 no FLASH_RESOURCE_NAME          no FLASH_ENDPOINT_TYPE
    deployed             FLASH_RESOURCE_NAME             FLASH_ENDPOINT_TYPE=lb, FLASH_RESOURCE_NAME

The client never changes an image's command, so the variables are all there is to go by.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping


class Mode(enum.Enum):
    """What is served."""

    LIVE_QUEUE = "live queue"
    LIVE_BALANCED = "live load-balanced"
    DEPLOYED_QUEUE = "deployed queue"
    DEPLOYED_BALANCED = "deployed load-balanced"


class ModeError(Exception):
    """The variables name no mode that this image can serve; the message says what to do."""


def of_queue(environ: Mapping[str, str]) -> Mode:
    """The mode of the queue image."""
    if environ.get("FLASH_ENDPOINT_TYPE") == "lb":
        raise ModeError(
            "FLASH_ENDPOINT_TYPE=lb asks for a load-balanced endpoint, and this is the queue's "
            "entry point: use the load-balanced image (lb_handler:app, or `flashpool serve lb`)"
        )
    return Mode.DEPLOYED_QUEUE if environ.get("FLASH_RESOURCE_NAME") else Mode.LIVE_QUEUE


def of_balanced(environ: Mapping[str, str]) -> Mode:
    """The mode of the load-balanced image."""
    kind = environ.get("FLASH_ENDPOINT_TYPE", "")
    if not kind:
        return Mode.LIVE_BALANCED
    if kind != "lb":
        raise ModeError(f"FLASH_ENDPOINT_TYPE={kind} is not known: lb, or not set")
    if not environ.get("FLASH_RESOURCE_NAME"):
        raise ModeError("FLASH_ENDPOINT_TYPE=lb needs FLASH_RESOURCE_NAME, the resource to serve")
    return Mode.DEPLOYED_BALANCED


def of_command(environ: Mapping[str, str]) -> Mode:
    """The mode of ``flashpool serve lb``, which may be typed anywhere.

    A resource alone is a deployed endpoint's, too: nothing that was deployed may ever run what
    others send.
    """
    if environ.get("FLASH_RESOURCE_NAME"):
        return Mode.DEPLOYED_BALANCED
    return of_balanced(environ)


def check_live(mode: Mode, environ: Mapping[str, str]) -> None:
    """Raise `ModeError` for the modes that do not exist yet."""
    if mode in (Mode.LIVE_QUEUE, Mode.LIVE_BALANCED):
        return
    name = environ.get("FLASH_RESOURCE_NAME", "")
    raise ModeError(
        f"The mode '{mode.value}' (FLASH_RESOURCE_NAME={name}) does not exist yet in this version "
        "of flashpool: it serves live endpoints only. Unset FLASH_RESOURCE_NAME and "
        "FLASH_ENDPOINT_TYPE to serve live calls"
    )
