"""Checks of the address that a server listens on, because every client can run code."""

from __future__ import annotations

import contextlib
import ipaddress
import logging

from .settings.table import Settings

_log = logging.getLogger(__name__)


class OpenServerError(Exception):
    """Anybody on the network could run code here; the message says how to prevent it."""


def check_admin(settings: Settings) -> None:
    """Raise OpenServerError if a network can reach the admin listener and no token guards it."""
    if settings.admin_port is None or settings.admin_token or settings.allow_open:
        return
    if not is_loopback(settings.admin_host):
        raise OpenServerError(
            f"Refusing to show stats on {settings.admin_host}: they hold names and error texts "
            "of calls, and no token guards them. Set FLASHPOOL_ADMIN_TOKEN (or _FILE), or "
            "FLASHPOOL_ADMIN_HOST=127.0.0.1 or, where the network itself is guarded, "
            "FLASHPOOL_ALLOW_OPEN=yes."
        )


def check_open(settings: Settings) -> None:
    """Raise OpenServerError for an open address without a token: for calls, or for stats."""
    check_admin(settings)
    if settings.allow_open or settings.token or is_loopback(settings.host):
        return
    if not settings.on_pod:
        raise OpenServerError(
            f"Refusing to listen on {settings.host} without a token: every client that reaches it could "
            "run code here. Set FLASHPOOL_TOKEN, or FLASHPOOL_HOST=127.0.0.1, or, where the "
            "network itself is guarded, FLASHPOOL_ALLOW_OPEN=yes."
        )
    _log.warning(
        "Listening on %s without a token, as RunPod's pods do: the platform is the only guard. "
        "FLASHPOOL_TOKEN adds one",
        settings.host,
    )


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach the address."""
    if host == "localhost":
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False
