"""Resources that the machine lacks now, and what needs them: for statistics and the log.

met ("zygote base#0", "processes") --> a line in the log, an entry in stats
over("zygote base#0")              --> a line in the log
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from flashpool.pool.stats import ShortageStats

from .poller import Clock

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Shortage:
    what: str
    since: float
    times: int = 0


class Shortages:
    """The current shortages of a pool."""

    def __init__(self, now: Clock) -> None:
        self._now = now
        self.known: dict[str, _Shortage] = {}

    def met(self, who: str, what: str) -> None:
        """Record that ``who`` could not get ``what``, and retries; log only the first time."""
        known = self.known.get(who)
        if known is None:
            known = self.known[who] = _Shortage(what, self._now())
            _log.warning("%s is short of %s: it retries, and calls wait", who, what)
        known.what = what
        known.times += 1

    def over(self, who: str) -> None:
        """End the shortage of ``who``: the resource is available, or no longer needed."""
        known = self.known.pop(who, None)
        if known is not None:
            seconds = self._now() - known.since
            _log.info("%s is no longer short of %s, after %.1f s", who, known.what, seconds)

    def stats(self) -> list[ShortageStats]:
        """Return all shortages, oldest first."""
        now = self._now()
        return [
            ShortageStats(who=who, what=one.what, for_s=round(now - one.since, 3), times=one.times)
            for who, one in self.known.items()
        ]
