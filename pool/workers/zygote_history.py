"""What became of a pool's zygotes: how often each was started, why starts failed, why it was lost.

Kept for as long as calls may name the environment: the next start goes by it (whether its workers
are spawned), and so do the words that calls and stats have for a zygote that is not there.
"""

from __future__ import annotations

from collections import deque

from flashpool.pool.scheduling.commands import ZygoteKey
from flashpool.pool.scheduling.zygote_table import RESTART_WINDOW_S


class ZygoteHistory:
    """The past of all zygotes of a pool."""

    def __init__(self) -> None:
        #: Environments whose workers are spawned, and why.
        self.spawned: dict[str, str] = {}
        #: How often each was started, why that failed last, and why it was lost when it was up.
        self.starts: dict[ZygoteKey, int] = {}
        self.failures: dict[ZygoteKey, str] = {}
        self.losses: dict[ZygoteKey, str] = {}
        self._lost_at: dict[ZygoteKey, deque[float]] = {}

    def started(self, key: ZygoteKey) -> None:
        """It is started once more: why it failed before is no news any more."""
        self.starts[key] = self.starts.get(key, 0) + 1
        self.failures.pop(key, None)

    def lost(self, key: ZygoteKey, reason: str, now: float) -> str:
        """It was up, and is lost; the reason, and how often that was so of late."""
        times = self._lost_at.setdefault(key, deque())
        times.append(now)
        while times[-1] - times[0] > RESTART_WINDOW_S:
            times.popleft()
        often = len(times)
        if often > 1:
            reason = f"{reason} ({often} times in {times[-1] - times[0]:.0f} s)"
        self.losses[key] = reason
        return reason

    def forget(self, environment: str) -> None:
        """Nothing of it is left, and no call will ask for it under this name."""
        self.spawned.pop(environment, None)
        for key in [key for key in self.starts if key.environment == environment]:
            del self.starts[key]
            for told in (self.failures, self.losses, self._lost_at):
                told.pop(key, None)
