"""Bytecode of an environment: compiled at its build, never written later, and checked.

    complete  compile every module, or (without compiling) delete invalid bytecode
    problems  files that Python would take for a module's bytecode, and that are not
    keep_out  keep imports from writing bytecode later (in_environment/environment_start.py)

`in_environment/bytecode_program.py` runs in the environment's own Python.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from flashpool.envs.concurrency.disk_threads import run_in_thread
from flashpool.envs.errors import VerificationFailed
from flashpool.envs.process import Finished, run
from flashpool.envs.store.apart import carried_out

from . import in_environment
from .metadata import site_packages_of

__all__ = ["complete", "keep_out", "problems"]

_log = logging.getLogger(__name__)

_LIMIT_S: Final = 600.0
_PROGRAM: Final = Path(in_environment.__file__).with_name("bytecode_program.py")
_START: Final = Path(in_environment.__file__).with_name("environment_start.py")
_MODULE: Final = "_flashpool_environment"
#: Sorts before the .pth files of packages, so that their imports come after it.
_PTH: Final = "00_flashpool_environment.pth"
#: Importing the module itself writes no bytecode either.
_PTH_LINE: Final = (
    "import sys; flag = sys.dont_write_bytecode; sys.dont_write_bytecode = True; "
    f"import {_MODULE}; sys.dont_write_bytecode = flag\n"
)
_WORDS: Final = 500


def keep_out(site_packages: Path) -> None:
    """Keep all processes of the environment from adding bytecode to it; blocking."""
    (site_packages / f"{_MODULE}.py").write_bytes(_START.read_bytes())
    (site_packages / _PTH).write_text(_PTH_LINE)


async def complete(environment: Path, final: Path, *, compiled: bool, jobs: int = 1) -> None:
    """Leave no bytecode that is truncated or another module's; runs at low priority.

    `compileall` is not used: it skips files that look valid, its workers leave semaphores behind
    when they are killed, and `py_compile` may leave a partial file on a full disk.

    Raises:
        OSError: bytecode could not be written; written files are complete.
    """
    mode, jobs = ("compile", jobs) if compiled else ("mend", 1)
    shares = await run_in_thread(_shares, environment, jobs)
    runs = [_run(mode, environment, final, share) for share in shares]
    # If one process fails, wait for the others: their files must be complete before the seal.
    for end in await asyncio.gather(*runs, return_exceptions=True):
        if isinstance(end, (TimeoutError, VerificationFailed)):
            _log.warning("not all bytecode of %s is compiled: %s", final.name, end)
        elif isinstance(end, BaseException):
            raise end


async def problems(environment: Path) -> list[str]:
    """Return problems of the bytecode; empty if there are none."""
    try:
        [share] = await run_in_thread(_shares, environment, 1) or [[]]
        return await _run("check", environment, environment, share)
    except (OSError, TimeoutError, VerificationFailed) as error:
        return [f"the bytecode of environment {environment.name} cannot be checked: {error}"]


async def _run(mode: str, environment: Path, final: Path, share: Sequence[str]) -> list[str]:
    python = environment / "bin" / "python"
    argv = ["nice", "-n", "10", str(python), "-I", "-S", "-W", "ignore", str(_PROGRAM)]
    argv += [mode, str(environment), str(final), *share]
    finished = await run(argv, environment={"PATH": "/usr/bin:/bin"}, limit_s=_LIMIT_S)
    bad, error = _answer(finished)
    if error is not None:
        raise error
    return [f"{path} of environment {environment.name} {wrong}" for path, wrong in bad]


def _answer(finished: Finished) -> tuple[list[tuple[str, str]], OSError | None]:
    try:
        told = json.loads(finished.stdout)
        bad = [(str(path), str(wrong)) for path, wrong in told["bad"]]
        error = told["error"] and OSError(*told["error"])
    except (ValueError, TypeError, KeyError):
        words = (finished.stderr or finished.stdout)[-_WORDS:]
        raise VerificationFailed(
            f"the environment's Python ended with status {finished.code}", words=words
        ) from None
    return bad, error


@carried_out
def _shares(environment: Path, jobs: int) -> list[list[str]]:
    """Distribute the files and directories with modules among ``jobs`` processes."""
    entries = sorted(
        str(path)
        for path in site_packages_of(environment).iterdir()
        if not path.is_symlink()
        and (path.suffix == ".py" or (path.is_dir() and path.suffix != ".dist-info"))
    )
    return [share for start in range(jobs) if (share := entries[start::jobs])]
