"""State of a prepared process for its workers: set once, before it forks or takes a call."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from . import randomness
    from .surroundings import Surroundings

#: Generators that are renewed for each worker, if modules were preloaded.
held: randomness.Held | None = None
#: The process as calls find it.
surroundings: Surroundings
#: Variables of which each call has its own value.
varying: frozenset[str] = frozenset()
#: Hooks at exit that preloads registered.
hooks: list[Callable[..., object]] = []
#: Seconds for what a call leaves to be done at its exit; of these, what its answer waits for.
exit_s: float = 10.0
exit_answer_s: float = 0.25
#: Seconds for an instance to close itself and for its process to exit.
grace_s: float = 2.0
