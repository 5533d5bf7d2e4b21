"""What a process that is prepared has for its workers: set once, before it forks or takes a call."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from . import randomness
    from .surroundings import Surroundings

#: What is renewed for each worker, where modules were preloaded.
held: randomness.Held | None = None
#: The process as calls find it.
surroundings: Surroundings
#: Variables of which each call has its own value.
varying: frozenset[str] = frozenset()
