"""Which sources a zygote compiles ahead of calls."""

from flashpool.pool._child.wire import SOURCES
from flashpool.pool.scheduling.compile_ahead import COUNTED, RUNS, CompileAhead


def test_a_source_is_compiled_once_after_a_few_runs() -> None:
    sources = CompileAhead()
    assert [sources.ran("f") for _ in range(RUNS + 2)] == [False] * (RUNS - 1) + [
        True,
        False,
        False,
    ]


def test_a_source_evicted_from_the_cache_may_be_compiled_again() -> None:
    sources = CompileAhead()
    for source in range(SOURCES + 1):
        assert [sources.ran(source) for _ in range(RUNS)][-1]
    assert not sources.ran(SOURCES)
    assert [sources.ran(0) for _ in range(RUNS)] == [False] * (RUNS - 1) + [True]


def test_a_source_that_runs_only_once_is_forgotten() -> None:
    sources = CompileAhead()
    sources.ran("f")
    for source in range(COUNTED):
        sources.ran(source)
    assert [sources.ran("f") for _ in range(RUNS)][:-1] == [False] * (RUNS - 1)
