"""Forks this process without the fork hooks that only forks by user code need."""

from __future__ import annotations

import os
from contextlib import contextmanager

TYPE_CHECKING = False
if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator
    from typing import Any

#: Forks without the hooks that `defer_lock_hooks` holds back.
fork = os.fork
_deferred: list[dict[str, Callable[[], None]]] = []


#: The main thread's object, which gets its new kernel id from `worker_start`, not from hooks.
main_thread: threading.Thread


class NotSafe(Exception):
    """This process must not fork workers, because of ``module``; ``why`` is the reason."""

    def __init__(self, module: str, why: str) -> None:
        super().__init__(module, why)
        self.module = module
        self.why = why


def defer_lock_hooks() -> None:
    """Import ``threading`` and ``logging`` without their fork hooks.

    The hooks renew locks that other threads may have held. A zygote has one thread and holds no
    lock when it forks, so its forks do not need the hooks, which took more than half of a worker's
    start. They are registered when user code forks. Fork hooks of other modules imported before the
    preloads are left alone.
    """
    global main_thread
    with hooks_deferred():
        import logging  # noqa: F401 - for its hooks
        import threading
    main_thread = threading.main_thread()
    os.fork = _hooks_first(os.fork)
    os.forkpty = _hooks_first(os.forkpty)


@contextmanager
def hooks_deferred() -> Iterator[None]:
    """Defer fork hooks that imports register until user code forks; a worker's start runs none."""
    register = os.register_at_fork
    os.register_at_fork = lambda **hooks: _deferred.append(hooks)
    try:
        yield
    finally:
        os.register_at_fork = register


def _hooks_first(function: Callable[[], Any]) -> Callable[[], Any]:
    def fork() -> Any:
        while _deferred:
            os.register_at_fork(**_deferred.pop(0))
        return function()

    fork.__doc__ = function.__doc__
    return fork
