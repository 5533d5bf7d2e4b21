"""Registers a hook for forks when it is imported, as loggers and database drivers do."""

import os

IMPORTED_IN = os.getpid()
forks_in_child = 0


def _count():
    global forks_in_child
    forks_in_child += 1


os.register_at_fork(after_in_child=_count)
