"""Soft limits of async calls: the call is cancelled, and other calls on its loop continue."""

from __future__ import annotations

from pathlib import Path

import pytest
from process.resident_calls import begin, result, run, thing, value

from support.live import Live

ASYNC = thing(
    """
async def waits(self, path):
    import asyncio
    try:
        await asyncio.sleep(60)
    finally:
        open(path, "w").close()
""",
    """
def gives(self, path):
    return self.waits(path)
""",
    """
async def items(self, path):
    import asyncio
    try:
        yield 1
        await asyncio.sleep(60)
    finally:
        open(path, "w").close()
""",
    """
async def refuses(self, seconds):
    import asyncio
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        await asyncio.sleep(seconds)
        return "stayed"
""",
)


@pytest.mark.parametrize("method", ["waits", "gives", "items"])
def test_finally_blocks_of_methods_run_and_their_instance_stays(
    live: Live, tmp_path: Path, method: str
) -> None:
    path = tmp_path / "left"
    assert result(live, "a", "inc", code=ASYNC) == 1
    outcome = run(live, "a", method, str(path), code=ASYNC, soft_s=0.3, run_s=20)
    assert outcome.error_type == "SoftTimeout"
    assert not outcome.from_user
    assert "soft limit of 0.3 s" in (outcome.error or "")
    assert path.exists()
    assert result(live, "a", "inc", code=ASYNC) == 2


def test_other_calls_on_the_loop_continue(live: Live, tmp_path: Path) -> None:
    result(live, "a", "inc", code=ASYNC)
    neighbour = begin(live, "a", "nap", 1.0, code=ASYNC)
    later = begin(live, "a", "waits", str(tmp_path / "later"), code=ASYNC, soft_s=0.6, run_s=20)
    sooner = begin(live, "a", "waits", str(tmp_path / "sooner"), code=ASYNC, soft_s=0.2, run_s=20)
    assert sooner.wait().error_type == later.wait().error_type == "SoftTimeout"
    assert value(neighbour.wait()) == 1


def test_a_call_that_ignores_the_soft_limit_gets_a_result_or_the_hard_limit(live: Live) -> None:
    assert result(live, "a", "refuses", 0, code=ASYNC, soft_s=0.2, run_s=20) == "stayed"
    late = run(live, "a", "refuses", 60, code=ASYNC, soft_s=0.2, run_s=0.6)
    assert late.error_type == "Timeout"


def test_a_call_that_finishes_in_time_is_not_cancelled(live: Live) -> None:
    assert result(live, "a", "nap", 0.05, code=ASYNC, soft_s=20) == 0
    # Nor is the plain call after it, although the earlier soft limit would have passed.
    assert result(live, "a", "nap", 0.1, code=ASYNC, soft_s=0.3) == 0
    assert result(live, "a", "sleep", 0.5, code=ASYNC) == 0


def test_finally_blocks_of_async_functions_run(live: Live, tmp_path: Path) -> None:
    path = tmp_path / "left"
    code = (
        "import asyncio\nasync def f(path):\n    try: await asyncio.sleep(60)\n"
        "    finally: open(path, 'w').close()"
    )
    outcome = live.call(code, str(path), soft_s=0.3, run_s=20)
    assert outcome.error_type == "SoftTimeout"
    assert path.exists()
