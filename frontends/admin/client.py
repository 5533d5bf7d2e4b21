"""Queries an admin listener from the command line; finds its address and token.

    --admin URL | FLASHPOOL_ADMIN_URL | the one server that runs here | FLASHPOOL_ADMIN_HOST, _PORT

The token is FLASHPOOL_ADMIN_TOKEN (or _FILE), else the token that a server of this user created.
"""

from __future__ import annotations

import contextlib
import http.client
import json
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import urlsplit

from flashpool.frontends.settings.table import Settings

from . import state_files

#: Seconds that an answer may take.
TIMEOUT_S: Final = 10.0


class AdminUnreachable(Exception):
    """No admin listener can be reached; the message says why, and what to do."""


class AdminRefused(Exception):
    """The listener answered with an error; the message is the listener's."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(status, detail)
        self.status = status
        self.detail = detail

    def __str__(self) -> str:
        return self.detail


class AdminClient:
    """Queries one admin listener, with a new connection for each request."""

    def __init__(self, url: str, token: str | None, *, guessed: bool = False) -> None:
        """``guessed``: the token may belong to another server; if the listener refuses the token,
        the client continues without one.
        """
        self.url = url.rstrip("/")
        self._token = token
        self._guessed = guessed

    @classmethod
    def find(cls, settings: Settings, url: str | None = None) -> AdminClient:
        """Return a client of the listener that the URL, the settings or the state files name.

        Raises:
            AdminUnreachable: several servers run here, or the listener is switched off.
        """
        address = url or settings.admin_url or _local_url(settings)
        if settings.admin_token:
            return cls(address, settings.admin_token)
        return cls(address, state_files.kept_token(settings), guessed=True)

    def get(self, path: str) -> Any:
        """Return the JSON that a path answers with."""
        return self.ask("GET", path)

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """Send one request; return the JSON of its answer, or None if the answer is empty.

        Raises:
            AdminRefused: the answer is an error.
            AdminUnreachable: no listener answers.
        """
        try:
            with self._answer(method, path, body, TIMEOUT_S) as answer:
                data = answer.read()
        except AdminRefused as error:
            if error.status == http.client.UNAUTHORIZED and self._forget_guess():
                return self.ask(method, path, body)
            raise
        return json.loads(data) if data else None

    def status(self, path: str) -> tuple[int, bytes]:
        """Return status and body of a path's answer, even if the answer is an error."""
        with self._sent("GET", path, None, TIMEOUT_S) as answer:
            status, body = answer.status, answer.read()
        if status == http.client.UNAUTHORIZED and self._forget_guess():
            return self.status(path)
        return status, body

    def _forget_guess(self) -> bool:
        """Discard a refused token if it was guessed; return whether to try again without it."""
        worth = self._guessed and self._token is not None
        if worth:
            self._token = None
        return worth

    @contextlib.contextmanager
    def stream(
        self, path: str, timeout_s: float | None = None
    ) -> Iterator[http.client.HTTPResponse]:
        """Provide an answer that is read as it arrives, such as server-sent events."""
        with self._answer("GET", path, None, timeout_s) as answer:
            yield answer

    @contextlib.contextmanager
    def _answer(
        self, method: str, path: str, body: Any, timeout_s: float | None
    ) -> Iterator[http.client.HTTPResponse]:
        with self._sent(method, path, body, timeout_s) as answer:
            if answer.status >= http.client.BAD_REQUEST:
                raise AdminRefused(answer.status, _detail(answer))
            yield answer

    @contextlib.contextmanager
    def _sent(
        self, method: str, path: str, body: Any, timeout_s: float | None
    ) -> Iterator[http.client.HTTPResponse]:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise AdminUnreachable(f"{self.url!r} is not the URL of an admin listener")
        made = (
            http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        )
        connection = made(parts.hostname, parts.port, timeout=timeout_s)
        headers = {"Accept": "application/json"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        data = None if body is None else json.dumps(body).encode()
        try:
            try:
                connection.request(method, parts.path + path, data, headers)
                answer = connection.getresponse()
            except OSError as error:
                raise AdminUnreachable(
                    f"No admin listener answers at {self.url} ({error}). Is the server running? "
                    f"--admin or FLASHPOOL_ADMIN_URL names another address"
                ) from error
            yield answer
        finally:
            connection.close()


def _local_url(settings: Settings) -> str:
    found = state_files.addresses(settings)
    if len(found) == 1 and "admin_port" not in _given(settings):
        return found[0].url
    if len(found) > 1 and "admin_port" not in _given(settings):
        listed = "; ".join(f"{one.url} (process {one.pid}, {one.mode})" for one in found)
        raise AdminUnreachable(
            f"Several servers run here: {listed}. Name one with --admin or FLASHPOOL_ADMIN_URL"
        )
    if settings.admin_port is None:
        raise AdminUnreachable("FLASHPOOL_ADMIN_PORT is none: there is no admin listener")
    host = f"[{settings.admin_host}]" if ":" in settings.admin_host else settings.admin_host
    return f"http://{host}:{settings.admin_port}"


def _given(settings: Settings) -> set[str]:
    return {name for name, origin in settings.origins.items() if origin != "default"}


def _detail(answer: http.client.HTTPResponse) -> str:
    text = answer.read().decode("utf-8", "replace")
    with contextlib.suppress(ValueError, TypeError, KeyError):
        return str(json.loads(text)["detail"])
    return f"{answer.status} {answer.reason}: {text[:500]}"
