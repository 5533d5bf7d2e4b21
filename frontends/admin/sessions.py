"""Sessions of the page: a user signs in once with the token, then a cookie names the session.

The cookie holds a random name, not the token: scripts cannot read it (HttpOnly), no other site's
page sends it (SameSite=Strict), and it is worth nothing once the server has exited.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable
from http.cookies import CookieError, SimpleCookie
from typing import Final

COOKIE: Final = "flashpool_admin"
#: Lifetime of a session in seconds, and how many may exist; a new one replaces the oldest.
LIFE_S: Final = 12 * 3600
MOST: Final = 64


class Sessions:
    """The sessions of one listener."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        #: Digest of the cookie's value -> when its session expires.
        self._ends: dict[bytes, float] = {}

    def open(self) -> str:
        """Open a session; return the value of its ``Set-Cookie`` header."""
        while len(self._ends) >= MOST:
            del self._ends[next(iter(self._ends))]
        value = secrets.token_urlsafe(32)
        self._ends[_digest(value)] = self._now() + LIFE_S
        return f"{COOKIE}={value}; Path=/; Max-Age={LIFE_S}; HttpOnly; SameSite=Strict"

    def close(self, cookies: str) -> str:
        """Close the session of a ``Cookie`` header; return the ``Set-Cookie`` that removes it."""
        self._ends.pop(_digest(_value(cookies)), None)
        return f"{COOKIE}=; Path=/; Max-Age=0; HttpOnly; SameSite=Strict"

    def knows(self, cookies: str) -> bool:
        """Return whether a ``Cookie`` header names a session that has not expired."""
        # Look up digests: the time of the look-up reveals nothing about the values.
        end = self._ends.get(_digest(value)) if (value := _value(cookies)) else None
        return end is not None and end > self._now()

    @staticmethod
    def equal(given: str, right: str) -> bool:
        """Compare two secrets in constant time."""
        return hmac.compare_digest(given.encode(), right.encode())


def _value(cookies: str) -> str:
    if COOKIE not in cookies:
        return ""
    try:
        found = SimpleCookie(cookies).get(COOKIE)
    except CookieError:
        return ""
    return found.value if found is not None else ""


def _digest(value: str) -> bytes:
    return hashlib.sha256(value.encode()).digest()
