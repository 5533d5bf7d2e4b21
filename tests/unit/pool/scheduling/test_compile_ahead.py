"""Which sources are compiled ahead."""

from flashpool.pool._child.wire import SOURCES
from flashpool.pool.scheduling.compile_ahead import COUNTED, RUNS, CompileAhead


def test_after_a_few_runs_and_once() -> None:
    sources = CompileAhead()
    assert [sources.ran("f") for _ in range(RUNS + 2)] == [False] * (RUNS - 1) + [
        True,
        False,
        False,
    ]


def test_what_was_dropped_to_make_room_may_come_again() -> None:
    sources = CompileAhead()
    for source in range(SOURCES + 1):
        assert [sources.ran(source) for _ in range(RUNS)][-1]
    assert not sources.ran(SOURCES)
    assert [sources.ran(0) for _ in range(RUNS)] == [False] * (RUNS - 1) + [True]


def test_what_runs_once_is_forgotten() -> None:
    sources = CompileAhead()
    sources.ran("f")
    for source in range(COUNTED):
        sources.ran(source)
    assert [sources.ran("f") for _ in range(RUNS)][:-1] == [False] * (RUNS - 1)
