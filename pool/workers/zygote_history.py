"""The past of a pool's zygotes: number of starts, causes of failed starts, causes of losses.

The history of an environment is kept as long as calls may name the environment. The next start
depends on that history (whether workers are spawned), and so do errors of calls and statistics of
a zygote that does not run.
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
        #: By zygote: number of starts, why the latest start failed, and why the zygote was lost
        #: while it ran.
        self.starts: dict[ZygoteKey, int] = {}
        self.failures: dict[ZygoteKey, str] = {}
        self.losses: dict[ZygoteKey, str] = {}
        self._lost_at: dict[ZygoteKey, deque[float]] = {}

    def started(self, key: ZygoteKey) -> None:
        """Count a start, and forget an earlier failure."""
        self.starts[key] = self.starts.get(key, 0) + 1
        self.failures.pop(key, None)

    def lost(self, key: ZygoteKey, reason: str, now: float) -> str:
        """Record why a running zygote was lost; return the reason and how often that happened."""
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
        """Forget an environment that has no process, and whose name no call will use again."""
        self.spawned.pop(environment, None)
        for key in [key for key in self.starts if key.environment == environment]:
            del self.starts[key]
            for told in (self.failures, self.losses, self._lost_at):
                told.pop(key, None)
