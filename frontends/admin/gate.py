"""Decides which requests to the admin listener are allowed; `app` asks for each.

| guard | loopback listener | open listener |
|---|---|---|
| PROBE | anybody | anybody |
| READ | anybody on this machine | token or session, unless FLASHPOOL_ALLOW_OPEN |
| TOKEN | token or session | token or session |

Calls reach loopback addresses, too, and must neither drain the server nor read a neighbour's
output. Therefore routes that change state, or show the output of calls, need the token everywhere.
Every request with a wrong token is refused.

Web pages: a browser lets any page send requests to any address. The browser names the page's origin
(``Origin``, ``Sec-Fetch-Site``), except after DNS rebinding, where the page's own name resolves to
this machine: then ``Host`` is the page's name. Such a page has no token. A listener on loopback
therefore checks ``Host`` if the request has no token, and always checks ``Origin``.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from flashpool.frontends.http_server.same_machine import is_local

from .sessions import COOKIE, Sessions

_BEARER: Final = "bearer"
_SAFE: Final = frozenset({"GET", "HEAD"})


class Guard(enum.Enum):
    """The credential that a route demands."""

    PROBE = "probe"
    READ = "read"
    TOKEN = "token"  # noqa: S105 - a word


class Credential(enum.Enum):
    """The credential that a request carries."""

    NONE = "no token"
    TOKEN = "the token"  # noqa: S105 - a word
    SESSION = "a session"
    WRONG = "a wrong token"


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why a request is not answered."""

    status: int
    detail: str


_FOREIGN: Final = Refusal(
    status=403, detail="Requests from web pages of another origin are not answered."
)
_OTHER_HOST: Final = Refusal(
    status=403,
    detail="This port is served to this machine only, and the request names another Host: ask for "
    "127.0.0.1 or localhost, or send the admin token.",
)
_WRONG: Final = Refusal(
    status=401,
    detail="That is not the admin token (FLASHPOOL_ADMIN_TOKEN, or the one that the server made "
    "at its start and keeps in its state directory).",
)
_NEEDED: Final = Refusal(
    status=401,
    detail="This needs the admin token: Authorization: Bearer ... (FLASHPOOL_ADMIN_TOKEN, or the "
    "one that the server made at its start and keeps in its state directory).",
)


class Gate:
    """Knows the token and the sessions of one listener."""

    def __init__(self, token: str, sessions: Sessions, *, loopback: bool, is_open: bool) -> None:
        """``is_open``: others on the network may read statistics without a token."""
        self._token = token
        self.sessions = sessions
        self._loopback = loopback
        self._open = is_open

    def credential(self, headers: Mapping[str, str]) -> Credential:
        """Return the kind of credential that the request carries."""
        if "authorization" in headers:
            scheme, _, given = headers["authorization"].partition(" ")
            right = scheme.lower() == _BEARER and self.is_token(given.strip())
            return Credential.TOKEN if right else Credential.WRONG
        if self.sessions.knows(headers.get("cookie", "")):
            return Credential.SESSION
        return Credential.NONE

    def is_token(self, given: str) -> bool:
        """Return whether a text is the admin token."""
        return self.sessions.equal(given, self._token)

    def refusal(self, method: str, headers: Mapping[str, str]) -> Refusal | None:
        """Return why this request is refused on every route, or None if it is not."""
        credential = self.credential(headers)
        if credential is Credential.WRONG:
            return _WRONG
        host = headers.get("host", "")
        if self._loopback and host and credential is not Credential.TOKEN and not is_local(host):
            return _OTHER_HOST
        return _FOREIGN if _is_foreign(method, headers, host) else None

    def guarded(self, guard: Guard, headers: Mapping[str, str]) -> Refusal | None:
        """Return why a request may not use a route with that guard, or None if it may."""
        if guard is Guard.PROBE:
            return None
        if guard is Guard.READ and (self._loopback or self._open):
            return None
        known = self.credential(headers) in (Credential.TOKEN, Credential.SESSION)
        return None if known else _NEEDED


def _is_foreign(method: str, headers: Mapping[str, str], host: str) -> bool:
    origin = headers.get("origin")
    if origin is not None:
        return origin.partition("://")[2].lower() != host.lower()
    site = headers.get("sec-fetch-site", "none")
    if site in ("none", "same-origin"):
        # Without Origin, a form of another page may still have sent a session's cookie along.
        return method not in _SAFE and site == "none" and COOKIE in headers.get("cookie", "")
    # A link on another page may lead here: that page cannot read the answer.
    return headers.get("sec-fetch-mode") != "navigate" or method not in _SAFE
