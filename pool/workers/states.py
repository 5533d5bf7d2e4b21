"""The states of zygotes and workers, and the legal moves; an illegal move raises an error."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final, Generic, TypeVar


class ZygoteState(enum.Enum):
    """A zygote, as the supervisor sees it."""

    STARTING = "starting"
    READY = "ready"
    #: Asked to exit; takes no more calls.
    EXITING = "leaving"
    GONE = "gone"


class WorkerState(enum.Enum):
    """A worker, as the supervisor sees it."""

    #: By identity: `Enum.__hash__` is written in Python and slow, and each call makes three moves.
    __hash__ = object.__hash__

    #: Forked, not prepared yet (start method spawn).
    PREPARING = "preparing"
    SPARE = "spare"
    BUSY = "busy"
    #: Told to stop, or its result has arrived; the process has not been reported dead.
    EXITING = "ending"
    GONE = "gone"


ZYGOTE_MOVES: Final[Mapping[ZygoteState, frozenset[ZygoteState]]] = {
    ZygoteState.STARTING: frozenset({ZygoteState.READY, ZygoteState.EXITING, ZygoteState.GONE}),
    ZygoteState.READY: frozenset({ZygoteState.EXITING, ZygoteState.GONE}),
    ZygoteState.EXITING: frozenset({ZygoteState.GONE}),
    ZygoteState.GONE: frozenset(),
}
WORKER_MOVES: Final[Mapping[WorkerState, frozenset[WorkerState]]] = {
    WorkerState.PREPARING: frozenset({WorkerState.SPARE, WorkerState.EXITING, WorkerState.GONE}),
    WorkerState.SPARE: frozenset({WorkerState.BUSY, WorkerState.EXITING, WorkerState.GONE}),
    WorkerState.BUSY: frozenset({WorkerState.EXITING, WorkerState.GONE}),
    WorkerState.EXITING: frozenset({WorkerState.GONE}),
    WorkerState.GONE: frozenset(),
}


class IllegalMove(Exception):
    """A zygote or worker was to make a move that its table does not list: a bug in the pool."""


S = TypeVar("S", ZygoteState, WorkerState)


class StateMachine(Generic[S]):
    """A state that allows only the moves in its table, and remembers them."""

    __slots__ = ("_history", "_moves", "_who", "now")

    _moves: Mapping[S, frozenset[S]]
    _history: list[S]

    def __init__(self, who: str, start: S, moves: Mapping[S, frozenset[S]]) -> None:
        self.now: S = start
        self._who = who
        self._moves = moves
        self._history = [start]

    def move(self, to: S) -> None:
        """Change to this state.

        Raises:
            IllegalMove: the table has no such move. The message lists the states so far.
        """
        if to not in self._moves[self.now]:
            story = " -> ".join(state.value for state in self._history)
            raise IllegalMove(f"{self._who}: {story} -> {to.value} is not a legal move")
        self.now = to
        self._history.append(to)
