"""An environment's interpreter on a volume that hangs: which calls wait for it."""

import sys
import time
from pathlib import Path

import pytest

from flashpool.pool.calls import Provision
from support.hanging_volume import hanging_volume

ADD = "def f(a, b): return a + b"


@pytest.mark.slow
def test_an_interpreter_that_cannot_be_executed_delays_no_other_calls(
    make_live, tmp_path: Path
) -> None:
    with hanging_volume(tmp_path / "fuse") as volume:
        (volume.behind / "python").symlink_to(sys.executable)
        live = make_live(start_timeout_s=10.0).ready()
        volume.hang()
        live.supervisor.environments.add("one", str(volume.path / "python"))
        call = live.start(ADD, 1, 2, call={"provision": Provision(environment="one")})
        assert live.value(ADD, 2, 3) == 5
        outcome = call.wait(60)
        assert outcome.error_type == "EnvironmentStartFailed", outcome
        assert "volume that hangs" in outcome.error
        # The process is left to the kernel; the stop does not wait for it either.
        live.run(live.supervisor.stop())


def test_a_stop_does_not_wait_for_an_interpreter_that_starts(make_live, tmp_path: Path) -> None:
    with hanging_volume(tmp_path / "fuse") as volume:
        (volume.behind / "python").symlink_to(sys.executable)
        live = make_live().ready()
        volume.hang()
        live.supervisor.environments.add("one", str(volume.path / "python"))
        live.start(ADD, 1, 2, call={"provision": Provision(environment="one")})
        live.until(lambda: any(zygote.environment == "one" for zygote in live.stats().zygotes))
        began = time.monotonic()
        live.run(live.supervisor.stop())
        assert time.monotonic() - began < 60  # or for as long as the volume hangs
