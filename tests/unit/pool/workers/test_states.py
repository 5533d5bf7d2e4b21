"""State machines allow only the transitions of their tables."""

from __future__ import annotations

import pytest

from flashpool.pool.workers.states import (
    WORKER_MOVES,
    ZYGOTE_MOVES,
    IllegalMove,
    StateMachine,
    WorkerState,
    ZygoteState,
)


def test_an_illegal_transition_raises_with_the_history():
    worker = StateMachine("worker 7", WorkerState.SPARE, WORKER_MOVES)
    worker.move(WorkerState.BUSY)
    worker.move(WorkerState.EXITING)
    with pytest.raises(IllegalMove, match="worker 7: spare -> busy -> ending -> spare is not"):
        worker.move(WorkerState.SPARE)
    assert worker.now is WorkerState.EXITING


@pytest.mark.parametrize(
    ("states", "moves"), [(WorkerState, WORKER_MOVES), (ZygoteState, ZYGOTE_MOVES)]
)
def test_every_state_has_its_row_and_only_gone_is_final(states, moves):
    assert set(moves) == set(states)
    assert [state for state in states if not moves[state]] == [states.GONE]


def test_a_worker_is_never_used_twice():
    reachable, edge = set(), {WorkerState.BUSY}
    while edge:
        state = edge.pop()
        reachable.add(state)
        edge |= WORKER_MOVES[state] - reachable
    assert WorkerState.SPARE not in reachable
