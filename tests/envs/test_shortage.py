"""Builds on a machine that is short of processes or descriptors for a while."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flashpool.envs import Environments, Spec, uv_cli
from flashpool.envs.acquiring import acquisition
from flashpool.envs.errors import MachineShort
from flashpool.envs.process import run as run_command

Run = Callable[[Any], Any]
#: Error output of a uv and of a shell that cannot fork.
WORDS = {
    "uv": "error: Failed to query Python interpreter\n"
    "  Caused by: Resource temporarily unavailable (os error 11)",
    "build": "  × Failed to build `alpha`\n      OSError: [Errno 24] Too many open files: 'x'",
    "shell": "flashpool-guard: 3: Cannot fork",
}


@pytest.mark.parametrize("who", list(WORDS))
def test_a_uv_that_cannot_fork_is_retried(
    who: str, setup: Any, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acquisition, "_SHORT_PAUSE_S", 0.01)
    real = uv_cli.find_uv(setup.settings())
    short, asked = tmp_path / "short", tmp_path / "asked"
    short.write_text(WORDS[who])
    stand_in = tmp_path / "uv"
    stand_in.write_text(
        f"#!/bin/sh\nif [ -e {short} ]; then echo x >>{asked}; cat {short} >&2; exit 2; fi\n"
        f'exec {real} "$@"\n'
    )
    stand_in.chmod(0o755)

    def told(line: str) -> None:
        if "short of" in line:
            lines.append(line)
        if lines and len(asked.read_text().splitlines()) > 2:
            short.unlink(missing_ok=True)

    lines: list[str] = []
    shortages: list[tuple[str, str]] = []

    async def main() -> None:
        async with Environments(setup.settings(uv=stand_in)) as environments:
            environments.on_shortage(lambda who, what: shortages.append((who, what)))
            with await environments.acquire(Spec(requirements=("alpha",)), progress=told) as found:
                assert found.origin == "built"

    run(main())
    assert len(lines) == 1, "each shortage is told once"
    assert {who for who, _ in shortages} == {"the build of alpha"}
    assert all(what for _, what in shortages[:-1])
    assert shortages[-1][1] == "", "it is over"


def test_a_command_that_met_a_shortage_has_no_result(run: Run) -> None:
    failing = "raise BlockingIOError(11, 'Resource temporarily unavailable')"
    with pytest.raises(MachineShort, match="processes"):
        run(run_command([sys.executable, "-c", failing], environment={}))
