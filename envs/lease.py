"""Results of an acquisition: an environment and its lease; or an explanation."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Literal

__all__ = ["Decision", "Environment", "Explanation", "Lease", "Origin", "Seconds", "Where"]

_log = logging.getLogger(__name__)

Where = Literal["base", "layer", "isolated"]
Origin = Literal["base", "memo", "disk", "archive", "built"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Seconds:
    """Seconds of each phase."""

    resolve: float = 0.0
    fetch: float = 0.0
    build: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The origin of one package, and the reason."""

    name: str
    version: str
    where: Where
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """A ready environment, as one acquisition found it."""

    digest: str
    #: The interpreter to exec. With `-S`, add `site_dirs` to the path, in that order.
    python: Path
    #: The environment's directory; None for the base itself.
    root: Path | None
    site_dirs: tuple[Path, ...]
    mode: Where
    origin: Origin
    seconds: Seconds = field(default_factory=Seconds)

    @property
    def hit(self) -> bool:
        """Return whether nothing had to be built."""
        return self.origin != "built"

    def seen_as(self, origin: Origin, seconds: Seconds | None = None) -> Environment:
        """Return a copy of the environment with another origin."""
        return replace(self, origin=origin, seconds=seconds or Seconds())


class Lease:
    """The right to use an environment. Released once.

    While the lease lasts, no process deletes the environment.
    """

    __slots__ = ("_give_back", "environment")

    def __init__(self, environment: Environment, give_back: Callable[[str], None] | None) -> None:
        self.environment = environment
        self._give_back: Callable[[str], None] | None = give_back or _nothing

    def __repr__(self) -> str:
        state = "released" if self._give_back is None else "held"
        return f"<Lease {self.environment.digest[:8]} {state}>"

    @property
    def released(self) -> bool:
        return self._give_back is None

    def release(self) -> bool:
        """Release the lease; return True the first time.

        A second time is a bug of the caller, and harmless.
        """
        give_back, self._give_back = self._give_back, None
        if give_back is None:
            _log.error("the lease on %s was released twice", self.environment.digest)
            return False
        give_back(self.environment.digest)
        return True

    def __enter__(self) -> Environment:
        return self.environment

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


def _nothing(_digest: str) -> None:
    return


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """What a spec would install, package by package; nothing is built."""

    digest: str
    mode: Where
    reason: str
    decisions: tuple[Decision, ...]
    #: Where the environment exists already.
    present: Literal["base", "disk", "archive", "absent"]
