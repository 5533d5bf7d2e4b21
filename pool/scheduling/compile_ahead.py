"""Which sources a zygote compiles ahead of the calls that bring them. Decisions only.

A function that is called again and again comes with the same source each time, and to
compile it is a fifth of a small call's work. One that has run a few times is compiled in the
zygote, where all workers forked from then on find it. Not at once: most sources come once,
and one that breaks the compiler must break a worker first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Final

from flashpool.pool._child.wire import SOURCE_LIMIT, SOURCES

__all__ = ["SOURCE_LIMIT", "CompileAhead"]

#: Calls of a source that have ended in a result before it is compiled ahead.
RUNS: Final = 3
#: Sources that are counted at once.
COUNTED: Final = 512


class CompileAhead:
    """The sources of one zygote."""

    def __init__(self) -> None:
        self._runs: OrderedDict[Hashable, int] = OrderedDict()
        #: As the zygote has them: the oldest goes first.
        self.compiled: OrderedDict[Hashable, None] = OrderedDict()

    def ran(self, source: Hashable) -> bool:
        """A call of it had a result; True when it is to be compiled now."""
        if source in self.compiled:
            return False
        runs = self._runs.pop(source, 0) + 1
        if runs < RUNS:
            self._runs[source] = runs
            if len(self._runs) > COUNTED:
                self._runs.popitem(last=False)
            return False
        self.compiled[source] = None
        if len(self.compiled) > SOURCES:
            self.compiled.popitem(last=False)
        return True
