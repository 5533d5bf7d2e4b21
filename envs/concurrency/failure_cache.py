"""Failed builds, remembered for a short time.

A request that cannot be built is usually repeated at once, by many clients. They get the same error
without a query to the index, until the failure is forgotten. Failures that may not repeat (network,
disk, time limits) are not remembered.
"""

from __future__ import annotations

import copy
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from flashpool.envs.errors import EnvironmentFailure

__all__ = ["Failures"]

_MOST: Final = 256


class Failures:
    """Failures by request, each for `lifetime_s`."""

    def __init__(self, lifetime_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._lifetime_s = lifetime_s
        self._clock = clock
        self._known: OrderedDict[str, tuple[float, EnvironmentFailure]] = OrderedDict()

    def __repr__(self) -> str:
        return f"<Failures {len(self._known)} remembered>"

    def remember(self, key: str, failure: EnvironmentFailure) -> None:
        """Remember a failure, if it is of a kind that repeats."""
        if not failure.remembered or self._lifetime_s <= 0:
            return
        # Remember a copy: the original is raised to its caller and gets a traceback.
        self._known[key] = (self._clock(), copy.copy(failure))
        while len(self._known) > _MOST:
            self._known.popitem(last=False)

    def recall(self, key: str) -> EnvironmentFailure | None:
        """Return a fresh copy of the failure, if it is recent."""
        found = self._known.get(key)
        if found is None:
            return None
        since, failure = found
        if self._clock() - since > self._lifetime_s:
            del self._known[key]
            return None
        return copy.copy(failure)

    def forget(self, key: str) -> None:
        """Forget a failure: the request asks to try again."""
        self._known.pop(key, None)
