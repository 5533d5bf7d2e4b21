"""State of a prepared process for its workers: set once, before it forks or takes a call."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from . import randomness
    from .surroundings import Surroundings

#: Values that are renewed for each worker, if modules were preloaded.
held: randomness.Held | None = None
#: The surroundings in which calls begin.
surroundings: Surroundings
#: Environment variables that differ between calls.
varying: frozenset[str] = frozenset()
#: Exit hooks that preloads registered.
hooks: list[Callable[..., object]] = []
#: Seconds that a call's exit may take; and how long the answer waits for it.
exit_s: float = 10.0
exit_answer_s: float = 0.25
#: Seconds for an instance to close itself and for its process to exit.
grace_s: float = 2.0
